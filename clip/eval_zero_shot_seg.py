r"""Zero-shot segmentation by a CLIP's patches: mIoU on VOC, Context, COCO, ADE20K, Cityscapes, or your own images.

    python clip/eval_zero_shot_seg.py --dataset voc20 --root VOCdevkit/VOC2012 --protocol sclip \
        --model "CLIP ViT-B/16, CLS=open_clip:ViT-B-16-quickgelu@ViT-B-16.pt" \
        --model "CLIP ViT-B/16, LaSt=open_clip:ViT-B-16-quickgelu@logs/last/checkpoints/epoch_1.pt"
    python clip/eval_zero_shot_seg.py --dataset custom --root rooms --class-names rooms/classes.txt --model ...
    torchrun --nproc-per-node 8 clip/eval_zero_shot_seg.py ...        # every image once, whatever the number

Every patch goes through the final norm and the projection of the image tower and is compared with the text embedding of
every class name (mean over 80 prompts, kept by content). Cosines of overlapping windows are averaged and stretched to
the annotation's size; a class scores what the best of its names does. `--protocol` sets names, image size, windows,
softmax scale, thresholds and refinement as the code of that method has them for the data set; flags replace single
settings, and every record holds them all. What a method does to the last block is apart: `--last-block`, plain CLIP
(vanilla) by default. The pooling takes no part in dense features: LaSt shows through the weights trained with it. For
mIoU see clip/miou.py: unions over the whole set, ignored pixels left out, mean over the classes that occur.
"""

import argparse
from pathlib import Path

from seg_settings import CUSTOM, DATASETS, PROTOCOLS, ZERO_LABELS
from zero_shot_flags import add_clip_flags, add_last_block_flags

from last_vit.command_line import add_running_flags, command, positive


@command("zero_shot_segmentation:run")
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add_clip_flags(parser)
    add_last_block_flags(parser)
    add = parser.add_argument_group("data").add_argument
    add("--dataset", choices=(*DATASETS, CUSTOM), required=True, help="custom has images/ and labels/")
    add("--root", type=Path, required=True, help="the data set's folder, in its official layout")
    add("--split", default="val", help="default val")
    add("--any-count", action="store_true", help="take a part of a data set, too, and say so in the record")
    add("--class-names", type=Path, help="file of names in place of the protocol's; custom needs one")
    add("--zero-label", choices=ZERO_LABELS, default="class", help="custom: what 0 means in label files; default class")
    add("--dataset-name", help="in the results; default: the benchmark's, of custom the folder's")
    add = parser.add_argument_group("protocol, and flags that replace its settings for the data set").add_argument
    add("--protocol", choices=PROTOCOLS, default="sclip", help="default sclip, the nearest to the paper's")
    add("--short-side", type=positive, help="of the image as the model sees it, in pixels")
    add("--crop", type=int, help="side of a window in pixels; 0 is the whole image at once")
    add("--stride", type=int, help="from window to window, in pixels")
    add("--logit-scale", type=float, help="factor of the cosines in the softmax")
    add("--prob-threshold", type=float, help="pixels less probable than this become background; 0 is none")
    add("--pamr", choices=("on", "off"), help="refine scores by the image: 10 steps, dilations 8 and 16")
    add_running_flags(parser, batch_size=8)
    add = parser.add_argument
    add("--window-batch", type=positive, default=64, help="windows per forward pass, at most; default 64")
    add("--per-class", action="store_true", help="also print and record the IoU of every class")
    add("--overlays", type=Path, help="folder for pictures of image, ground truth and prediction")
    add("--num-overlays", type=positive, default=12, help="pictures per model, evenly spread over the set; default 12")


if __name__ == "__main__":
    main()
