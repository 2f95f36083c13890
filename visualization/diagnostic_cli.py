"""Flags of this folder's commands beside those of last_vit/command_line.py: images, their objects, the picture.

Imports nothing heavy, so that --help needs neither torch nor a host library.
"""

import argparse
from pathlib import Path

from last_vit.command_line import positive

FIGURE_ENDINGS = (".png", ".pdf", ".svg", ".webp")


def add_image_flags(parser: argparse.ArgumentParser, or_imagenet: bool = False) -> None:
    """A folder of images and what is object on them; with `or_imagenet` also ImageNet's layout in its place."""
    add = parser.add_argument
    images_help = "folder of images, searched in depth"
    if or_imagenet:
        group = parser.add_mutually_exclusive_group(required=True)
        group.add_argument("--images", type=Path, help=images_help)
        add_imagenet_flags(parser, group)
    else:
        add("--images", type=Path, required=True, help=images_help)
    objects = parser.add_mutually_exclusive_group()
    objects.add_argument(
        "--boxes",
        type=Path,
        help="what is object: COCO's instances_*.json, or a folder of XML files (VOC, ImageNet), one per image",
    )
    objects.add_argument(
        "--masks",
        type=Path,
        help="what is object, by pixel, in place of --boxes: COCO's instances_*.json, or a folder of one mask per "
        "image (PNG, 0 is background and 255 unknown, as VOC's SegmentationObject; or .npy)",
    )
    add("--skip-broken", action="store_true", help="leave out and count images that are unreadable or not annotated")
    add("--dataset-name", help="data set in the results; default: the last two folders of --images")


def add_imagenet_flags(
    parser: argparse.ArgumentParser, group: "argparse._MutuallyExclusiveGroup | None" = None
) -> None:
    """ImageNet's validation images and boxes, in any of its layouts; --imagenet-root is required outside a group."""
    (group or parser).add_argument(
        "--imagenet-root", type=Path, required=group is None, help="folder that holds val/, or val/ itself"
    )
    parser.add_argument(
        "--imagenet-label-dir", type=Path, help="folder of the XML boxes; default: found beside the images"
    )


def add_checkpoint_flag(parser: argparse.ArgumentParser) -> None:
    """The released scripts' own way to name weights."""
    what = "weights of the one --model that names none; without --model of torchvision:vit_b_16, as released"
    parser.add_argument("--checkpoint", type=Path, help=what)


def add_hit_rule_flag(parser: argparse.ArgumentParser) -> None:
    """--hit-rule, as `last_vit.metrics.box_patch_mask` takes it."""
    parser.add_argument(
        "--hit-rule",
        choices=("release", "center"),
        default="release",
        help="which patches lie in a box: those that it touches, or those with their centre in it; default release",
    )


def add_protocol_flags(parser: argparse.ArgumentParser) -> None:
    """The choices that the paper leaves open in Point-in-Box, beside the token."""
    add_hit_rule_flag(parser)
    parser.add_argument(
        "--max-box-area",
        type=_max_box_area,
        default=0.25,
        help="leave out images whose box covers this share or more; none = the paper; default 0.25, as released",
    )


def add_figure_flag(parser: argparse.ArgumentParser, figure: str) -> None:
    """Where the picture goes; `figure` is its default path."""
    endings = ", ".join(FIGURE_ENDINGS)
    parser.add_argument(
        "--figure", type=figure_path, default=Path(figure), help=f"picture to write ({endings}); default {figure}"
    )


def add_example_flags(parser: argparse.ArgumentParser) -> None:
    """Which images are the rows of a picture."""
    add = parser.add_argument
    add("--num-images", type=positive, help="rows; default 6, or all images there are")
    add("--seed", type=int, default=0, help="which images; default 0")


def figure_path(text: str) -> Path:
    """A flag's value that names a picture; a wrong ending is refused before the work, not after it."""
    path = Path(text)
    if path.suffix.lower() not in FIGURE_ENDINGS:
        raise argparse.ArgumentTypeError(f"must end in one of {', '.join(FIGURE_ENDINGS)}, got {text}")
    return path


def _max_box_area(text: str) -> float | None:
    if text == "none":
        return None
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be a share of the image in (0, 1], or none; got {text}")
    return value
