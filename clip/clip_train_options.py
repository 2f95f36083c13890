"""The command line of train_clip.py: our flags. All others go to open_clip_train's own parser.

Imports no torch, so that --help needs none.
"""

import argparse
from collections.abc import Sequence

from last_vit.command_line import command_parser, patch_count

POOLINGS = ("last", "cls", "max", "mean", "attention")
HOST_DATASET_TYPES = ("auto", "webdataset", "csv", "synthetic")
COCO, CLASSES, DRAWN = "coco-captions", "class-folder", "synthetic-captions"
OUR_DATASET_TYPES = (COCO, CLASSES, DRAWN)
DEFAULT_TOP_K = 0.5
DEFAULT_TEMPLATE = "a photo of a {}"


def parse_options(description: str, argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Our flags, and what is left of the command line for open_clip_train.

    Args:
        description: First part of the help.
        argv: Arguments without the program; None are the process's own.
    """
    parser = command_parser("train_clip.py", description)
    parser.allow_abbrev = False  # an abbreviation of open_clip's flag is not ours to take
    pooling = parser.add_argument_group("pooling").add_argument
    pooling(
        "--pooling",
        choices=POOLINGS,
        default="last",
        help="what the image embedding is projected from: LaSt, or a baseline of the paper's ablations; default last",
    )
    pooling(
        "--top-k",
        type=patch_count,
        help=f"of LaSt: patches kept per channel, a number or a share; default {DEFAULT_TOP_K} (best in table 8)",
    )
    pooling("--variant", choices=("release", "paper"), help="of LaSt: its formula; default release")
    model = parser.add_argument_group("model").add_argument
    model(
        "--model",
        metavar="NAME|JSON",
        help="an open_clip name, a name in clip/model_configs, or an open_clip model-config file; a ViT or EVA tower",
    )
    data = parser.add_argument_group("data").add_argument
    data(
        "--dataset-type",
        choices=(*HOST_DATASET_TYPES, *OUR_DATASET_TYPES),
        help="open_clip's, or: coco-captions, --train-data is COCO's folder or its captions_*.json; class-folder, it "
        "holds class folders of images; synthetic-captions, drawn images, --train-num-samples of them; default auto",
    )
    data(
        "--class-names",
        metavar="FILE",
        help="of class-folder: `imagenet`, `folders` or a file (clip/class_names.py); default imagenet where the "
        "folders are ImageNet's; of synonyms one is drawn",
    )
    data(
        "--caption-template",
        metavar="TEXT",
        action="append",
        help=f"of class-folder: caption with {{}} for the class; may be repeated, one is drawn; default "
        f"'{DEFAULT_TEMPLATE}'",
    )
    run = parser.add_argument_group("run").add_argument
    run("--dry-run", action="store_true", help="check everything, print the run's arithmetic, and stop")
    run("--help-open-clip", action="store_true", help="print open_clip_train's flags, and stop")
    return parser.parse_known_args(argv)
