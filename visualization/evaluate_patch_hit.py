r"""Point-in-Box: how often the patch most like the global token lies in the object's box (paper Sec. 4.1, tables 1, 3).

    python visualization/evaluate_patch_hit.py \
        --checkpoint ViT_190k.pth --imagenet-root /path/to/imagenet --batch-size 32
    python visualization/evaluate_patch_hit.py --imagenet-root /path/to/imagenet \
        --model "ViT, LaSt=torchvision:vit_b_16@ViT_190k.pth" --model ResNet=torchvision:resnet50@resnet50.pth \
        --model control=torchvision:resnet50@random
    python visualization/evaluate_patch_hit.py --images coco/val2017 --boxes coco/annotations/instances_val2017.json ...
    torchrun --nproc-per-node 8 visualization/evaluate_patch_hit.py ...   # every image once, whatever the number

Only images with exactly one annotated object count, and by default (as in the released script) only those whose box is
smaller than a quarter of the image; `--max-box-area none` is the paper's text. A random patch and the image's centre
score what they would score on the same images and the model's own grid. "outliers %" is the share of patches with a
high norm before the final norm, over the same images, and "high norm" says yes from 0.5 % on;
patch_norms.py has the rule. top-1 is given where the images have labels and the model's head as many
classes. Of several models each is loaded and run on one image before any is measured.
"""

import argparse
from pathlib import Path

from diagnostic_cli import add_checkpoint_flag, add_image_flags, add_protocol_flags

from last_vit.command_line import add_model_flags, add_running_flags, add_token_flag, command, patch_count
from last_vit.names import POOLS, VARIANTS


@command("point_in_box_protocol:run")
def main(parser: argparse.ArgumentParser) -> None:
    """The command line; its flags for checkpoint, ImageNet, batches and device are the released script's."""
    add = parser.add_argument
    add_model_flags(parser, required=False)
    add_checkpoint_flag(parser)
    add("--opts", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for a <config>.py")
    add(
        "--pool",
        choices=POOLS,
        help="pooling; default: what the checkpoint records (the release's files record none: last, K = 1)",
    )
    add("--top-k", type=patch_count, help="patches per channel for pool or token last: a number, or a share")
    add("--variant", choices=VARIANTS, help="stability score for pool or token last")
    add_image_flags(parser, or_imagenet=True)
    add(
        "--imagenet-meta",
        type=Path,
        help="LOC_synset_mapping.txt or torchvision's meta.bin; accepted for old commands, not needed: classes are the "
        "sorted folder names",
    )
    add_token_flag(parser)
    add_protocol_flags(parser)
    add_running_flags(parser)


if __name__ == "__main__":
    main()
