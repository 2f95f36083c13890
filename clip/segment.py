r"""Any photo cut into what words name: an overlay with a legend, by a CLIP's patches; no labels needed.

    python clip/segment.py --image photo.jpg --vocabulary "cat,grass,sky" \
        --model open_clip:ViT-B-16-quickgelu@ViT-B-16.pt
    python clip/segment.py --image *.jpg --vocabulary "cat; kitten, grass, sky" --model CLS=... --model LaSt=...

Writes <out>/<photo>_<model>.png and prints how much of the photo each class takes. Photos are held upright. The code is
that of eval_zero_shot_seg.py, which measures it, and so are --protocol, --short-side, --last-block and --pamr; every
pixel gets the most similar class, so name what surrounds the object, too.
"""

import argparse
from pathlib import Path

from seg_settings import PROTOCOLS
from zero_shot_flags import add_clip_flags, add_last_block_flags

from last_vit.command_line import add_device_flag, add_photo_flag, command, positive


@command("photo_segmentation:run")
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add_photo_flag(parser)
    add = parser.add_argument
    add(
        "--vocabulary",
        required=True,
        metavar="NAMES",
        help="classes between ',', synonyms of one between ';'; or a .txt with a class per line, or a .json",
    )
    add_clip_flags(parser)
    add_last_block_flags(parser)
    add("--protocol", choices=PROTOCOLS, default="sclip", help="of windows and softmax scale; default sclip")
    add("--short-side", type=positive, help="of the photo as the model sees it, in pixels; default 336 or 448")
    add("--pamr", choices=("on", "off"), help="refine scores by the photo; default: as the protocol does")
    add("--out", type=Path, default=Path("output/segment"), help="folder of the pictures; default output/segment")
    add_device_flag(parser)
    parser.set_defaults(crop=None, stride=None, logit_scale=None, prob_threshold=None, window_batch=64)


if __name__ == "__main__":
    main()
