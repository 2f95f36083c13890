"""What the evaluations share on the command line: names, and flags of DINO's backbones as DINO spells them.

Imports no torch, so that --help needs none.
"""

import argparse
from pathlib import Path

from dino_options import POOLINGS

from last_vit.command_line import add_device_flag, add_token_flag, add_workers_flag, non_negative, patch_count, positive
from last_vit.names import VARIANTS

RANDOM = "random"
# Of object discovery, and of coarse segmentation
METHODS, COMPONENTS = ("patch-score", "lost", "dino-seg", "tokencut"), ("peak", "largest", "all")
FEATURES = {"q": "queries", "k": "keys", "v": "values"}
RULES, PROTOCOLS = ("score", "attention"), ("union", "class", "object")


def add_backbone_flags(parser: argparse.ArgumentParser, patch_size: int = 16) -> None:
    """The backbone, its weights, and its pooling."""
    add = parser.add_argument_group("backbone").add_argument
    add("--arch", default="vit_small", help="as for main_dino.py; default vit_small")
    add("--patch_size", type=positive, default=patch_size, help=f"of a ViT, in pixels; default {patch_size}")
    add(
        "--pretrained_weights",
        required=True,
        help="a checkpoint of main_dino.py or DINO, or a released backbone; `random` for random weights as a control",
    )
    add("--checkpoint_key", default="teacher", help="network of a training checkpoint; default teacher")
    add("--pooling", choices=POOLINGS, help="global token; default: what the checkpoint records, else the class token")
    add("--top_k", type=patch_count, help="of LaSt: patches per channel, a number or a share; default: as recorded")
    add("--variant", choices=VARIANTS, help="of LaSt; default: as recorded")


def add_method_flags(parser: "argparse.ArgumentParser | argparse._ArgumentGroup") -> None:
    """Object discovery: its methods, their choices, and the size of the images."""
    add = parser.add_argument
    add("--method", nargs="+", choices=METHODS, default=["patch-score"], help="default patch-score")
    add(
        "--component",
        nargs="+",
        choices=COMPONENTS,
        default=["peak"],
        help="patch-score: box the part of the mask with the best patch, its largest part, or all of it; each becomes "
        "a row; default peak",
    )
    add_token_flag(parser)
    add("--which-features", choices=FEATURES, default="k", help="lost, tokencut: queries, keys or values; default k")
    add("--k-patches", type=positive, default=100, help="lost: candidates for the seed's friends; default 100")
    add("--tau", type=float, default=0.2, help="tokencut: cosine above which patches are tied; default 0.2")
    add("--eps", type=float, default=1e-5, help="tokencut: weight of patches that are not tied; default 1e-5")
    add("--dino-seg-head", type=non_negative, default=4, help="dino-seg: attention head, counted from 0; default 4")
    add("--mended", action="store_true", help="dino-seg: without the three slips of the published code")


def add_resize_flag(parser: "argparse.ArgumentParser | argparse._ArgumentGroup", *default: int) -> None:
    """The size at which images are read."""
    shown = " ".join(map(str, default)) or "as they are, the published protocol"
    what = f"shorter side in pixels, or height and width; default {shown}"
    parser.add_argument("--resize", type=positive, nargs="+", default=[*default], metavar="PIXELS", help=what)


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """ImageNet or a folder in its layout, input sizes, batches, device, and how processes meet."""
    group = parser.add_argument_group("data")
    add = group.add_argument
    add("--data_path", type=Path, required=True, help="folder with train/ and val/, each with a folder per class")
    add("--dataset_name", help="in the results; default: the name of --data_path")
    add("--image_size", type=positive, help="side of the input in pixels; default: what a ViT was trained on, or 224")
    add("--resize", type=positive, help="shorter side before the centre crop; default: 256 / 224 of --image_size")
    add("--batch_size_per_gpu", type=positive, default=128, help="images per process and step; default 128")
    add_workers_flag(group, "--num_workers")
    add_device_flag(parser)
    add = parser.add_argument_group("processes").add_argument
    add("--dist_url", default="env://", help="where processes meet if torchrun did not start them; default env://")
    add("--local_rank", type=int, default=0, help="ignored, as in DINO: launchers set LOCAL_RANK")
