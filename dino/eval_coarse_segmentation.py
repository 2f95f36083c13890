r"""Coarse segmentation of VOC 2012 by what a frozen model gives for its patches (paper Tab. 6, Sec. 8.3).

    python dino/eval_coarse_segmentation.py --voc-root VOCdevkit/VOC2012 \
        --model "DINO LaSt=dino:vit_small/16@output/dino/checkpoint.pth" --rule score attention

Rules, each making one or more binary maps of an image:

- score: patches whose score (cosine to the global token) exceeds the image's mean: the paper's rule.
- attention: per head, the patches that hold 60 % of the class token's attention in the last layer: DINO's rule.

Ground truth (see dino/coarse_seg.py): --protocol union, class or object. The paper does not say which, nor
at what size, so every record names them. Images are resized to the model's square input, aspect ignored, so that no
part of them is cut away; maps are brought back to the annotation's size by the nearest patch, and compared pixel by
pixel. Void pixels do not count.
"""

import argparse
from pathlib import Path

from eval_options import PROTOCOLS, RULES

from last_vit.command_line import MODEL_HELP, add_running_flags, add_token_flag, command, positive


@command("coarse_seg:run")
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add = parser.add_argument
    add("--model", action="append", required=True, metavar="MODEL", help=MODEL_HELP)
    add("--image-size", type=positive, help="side of the input in pixels; default: each model's")
    add("--voc-root", type=Path, required=True, help="VOCdevkit/VOC2012 or a folder in that layout")
    add("--voc-split", default="val", help="list in ImageSets/Segmentation; default val (1,449 images)")
    add("--rule", nargs="+", choices=RULES, default=["score"], help="default score, the paper's")
    add("--protocol", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS), help="ground truth; default: all three")
    add("--mass", type=float, default=0.6, help="rule attention: share of the attention that is kept; default 0.6")
    add_token_flag(parser)
    add("--dataset-name", help='in the results, such as "VOC12"; default: the name of --voc-root')
    add_running_flags(parser, batch_size=16)


if __name__ == "__main__":
    main()
