"""Flags that the zero-shot evaluations share, and those of the label converters; no torch, so that --help is quick."""

import argparse
from pathlib import Path

from last_vit.command_line import add_workers_flag
from last_vit.names import LAST_BLOCKS

MODEL_HELP = (
    "[NAME=]open_clip:ARCH@CHECKPOINT[,pool=KIND][,top_k=K][,variant=release|paper]; ARCH is an open_clip name or a "
    "model-config .json, CHECKPOINT a local file or `random`; once per model"
)


def add_clip_flags(parser: argparse.ArgumentParser) -> None:
    """--model, once per model, the arithmetic, and the text side."""
    add = parser.add_argument
    add("--model", action="append", required=True, metavar="MODEL", help=MODEL_HELP)
    add("--precision", choices=("fp32", "fp16", "bf16"), default="fp32", help="of the weights; default fp32")
    add(
        "--templates",
        default="openai",
        help="`openai` (80 prompts), `simple` (7), a template such as 'a photo of a {}', or a file with one per line; "
        "default openai",
    )
    add("--text-cache", type=Path, metavar="DIR", help="class embeddings; default ~/.cache/last_vit/class_embeddings")
    add("--no-text-cache", action="store_true", help="neither read nor keep class embeddings")


def add_last_block_flags(parser: argparse.ArgumentParser) -> None:
    """What the tower's last block is run as."""
    add = parser.add_argument
    add("--last-block", choices=LAST_BLOCKS, default="vanilla", help="see last_vit/clip_last_block.py; default vanilla")
    add("--gaussian-std", type=float, metavar="PATCHES", help="width of naclip's neighbourhood; default 5, NACLIP's")


def add_image_flags(parser: argparse.ArgumentParser) -> None:
    """Labelled images, and what their classes are called."""
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--imagenet-root", type=Path, help="folder that holds ImageNet's val/, val/ itself, or Kaggle's")
    group.add_argument("--images", type=Path, help="any folder with a folder of images per class")
    add = parser.add_argument
    add(
        "--class-names",
        metavar="SOURCE",
        help="`imagenet` (open_clip's names), `folders` (the folders' own), or a file: one class per line, synonyms "
        "between ';' or ',', in the order of the sorted folders; LOC_synset_mapping.txt; or JSON. Default: imagenet, "
        "if the folders are its",
    )
    add("--skip-broken", action="store_true", help="leave out and count unreadable images")
    add("--dataset-name", help="of the images in the results; default: the folder's")


def add_conversion_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that every label converter has."""
    add_workers_flag(parser, "--num-workers")
    parser.add_argument("--overwrite", action="store_true", help="make files again that are there")
    parser.add_argument("--any-count", action="store_true", help="take a part of the data set, too")


def add_target_flags(parser: argparse.ArgumentParser) -> None:
    """--split and --output."""
    parser.add_argument("--split", nargs="+", choices=("train", "val"), default=["val"], help="default val")
    parser.add_argument("--output", type=Path, required=True, help="root to write to, may be --root; makes folders")
