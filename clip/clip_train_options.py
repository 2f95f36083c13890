"""The command line of train_clip.py: our flags. All others go to open_clip_train's own parser."""

import argparse

from last_vit.command_line import command_parser, patch_count
from last_vit.names import POOLS, VARIANTS

HOST_DATASET_TYPES = ("auto", "webdataset", "csv", "synthetic")
COCO, CLASSES, DRAWN = "coco-captions", "class-folder", "synthetic-captions"
OUR_DATASET_TYPES = (COCO, CLASSES, DRAWN)
DEFAULT_TOP_K = 0.5  # the best of the paper's table 8
DEFAULT_TEMPLATE = "a photo of a {}"


def build_parser(description: str) -> argparse.ArgumentParser:
    """Our flags, for `parse_known_args`."""
    parser = command_parser("train_clip.py", description)
    parser.allow_abbrev = False  # an abbreviation of open_clip's flag is not ours to take
    add = parser.add_argument_group("pooling").add_argument
    add("--pooling", choices=POOLS, default="last", help="what the image embedding is projected from; default last")
    add("--top-k", type=patch_count, help=f"of LaSt: patches per channel, a number or a share; default {DEFAULT_TOP_K}")
    add("--variant", choices=VARIANTS, help="of LaSt: its formula; default release")
    add = parser.add_argument_group("model and data").add_argument
    add(
        "--model",
        metavar="NAME|JSON",
        help="an open_clip name, a name in clip/model_configs, or an open_clip model-config file; a ViT or EVA tower",
    )
    add(
        "--dataset-type",
        choices=(*HOST_DATASET_TYPES, *OUR_DATASET_TYPES),
        help="open_clip's, or: coco-captions, --train-data is COCO's folder or its captions_*.json; class-folder, it "
        "holds class folders of images; synthetic-captions, drawn images, --train-num-samples of them; default auto",
    )
    add(
        "--class-names",
        metavar="FILE",
        help="of class-folder: `imagenet`, `folders` or a file (clip/class_names.py); default imagenet where the "
        "folders are ImageNet's; of synonyms one is drawn",
    )
    add(
        "--caption-template",
        metavar="TEXT",
        action="append",
        help=f"of class-folder: caption with {{}} for the class; may be repeated, one is drawn; default "
        f"'{DEFAULT_TEMPLATE}'",
    )
    add = parser.add_argument_group("run").add_argument
    add("--dry-run", action="store_true", help="check everything, print the run's arithmetic, and stop")
    add("--help-open-clip", action="store_true", help="print open_clip_train's flags, and stop")
    return parser
