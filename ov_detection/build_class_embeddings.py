"""Text embeddings of class names for the open-vocabulary detector, with names, tower and prompts in the file.

    python ov_detection/build_class_embeddings.py --model EVA02-B-16 --checkpoint EVA02_CLIP_B_psz16_s8B.pt \\
        --json lvis_v1_val.json --output lvis_eva02_b16.safetensors
    python ov_detection/build_class_embeddings.py --model ViT-B-16-quickgelu --checkpoint ViT-B-16.pt \\
        --vocabulary "cat,traffic cone" --prompts a --output mine.safetensors
    python ov_detection/build_class_embeddings.py --convert coco_80.npy --json instances_val2017.json \\
        --tower "CLIP ViT-B/32" --prompts a --output coco_80_vitb32.safetensors

--model is an open_clip architecture or the path of its JSON configuration, and must be the CLIP whose image tower the
detector uses. --prompts vild is the mean over ViLD's 63 templates, as F-ViT has it; a is "a {name}", as Detic has it.
"background" is embedded with the same prompts. Names come from a COCO or LVIS file's categories by ascending id, from a
text file with one per line, or from the command line.

--convert takes embeddings that others made: a .npy matrix with one row per name, or a dictionary name -> vector that
torch saved (F-ViT's .pt; its own names). --tower and --prompts are then what is written down about them.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from class_prompts import PROMPTS

from last_vit.command_line import command_parser, positive, run_command_line

if TYPE_CHECKING:
    from class_embeddings import ClassEmbeddings

NAME = "build_class_embeddings.py"


def read_names(args: Namespace) -> list[str] | None:
    """The class names that the flags give; None where none do.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a file of instances, or names that no vocabulary can have.
    """
    from class_embeddings import check_vocabulary
    from ov_classes import read_ov_classes

    from last_vit.data.coco import read_coco_json

    if args.json is not None:
        try:
            return list(read_ov_classes(read_coco_json(args.json)["categories"], novel=()).names)
        except ValueError as error:
            raise ValueError(f"{args.json}: {error}") from error
    if args.names is not None:
        names = [line.strip() for line in args.names.read_text(encoding="utf-8").splitlines()]
    elif args.vocabulary is not None:
        names = [name.strip() for name in args.vocabulary.split(",")] if args.vocabulary.strip() else []
    else:
        return None
    check_vocabulary(names)
    return names


def build(args: Namespace) -> "ClassEmbeddings":
    """Embed names with a tower, or read what others embedded.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Flags that do not go together; see `embed_class_names` and `load_class_embeddings`.
    """
    from class_embeddings import ClassEmbeddings, embed_class_names, load_class_embeddings

    names = read_names(args)
    if args.convert is not None:
        if args.model or args.checkpoint:
            raise ValueError("--convert reads embeddings, --model and --checkpoint make them: give one or the other")
        found = load_class_embeddings(args.convert, names)
        tower = args.tower or found.tower
        return ClassEmbeddings(found.names, found.embeddings, found.background, tower, args.prompts or found.prompts)
    if not args.model or not args.checkpoint or names is None:
        raise ValueError(
            "give --model, --checkpoint and the names (--json, --names or --vocabulary), or --convert with a file of "
            "embeddings"
        )
    from last_vit.clip_models import load_clip
    from last_vit.runtime import select_device

    clip = load_clip(args.model, args.checkpoint, device=select_device(args.device))
    tower = args.tower or f"{clip.arch}, weights {clip.checkpoint_sha256}"
    return embed_class_names(clip.model, clip.tokenizer, names, tower, args.prompts or "vild", args.batch_size)


def run(args: Namespace) -> None:
    """Make the file and say what is in it."""
    from class_embeddings import save_class_embeddings

    embeddings = build(args)
    save_class_embeddings(args.output, embeddings)
    background = "with" if embeddings.background is not None else "without"
    print(
        f"written {args.output}: {len(embeddings)} classes x {embeddings.width}, {background} background; tower "
        f"{embeddings.tower}, prompts {embeddings.prompts}"
    )


def build_parser() -> ArgumentParser:
    """The command line's flags."""
    parser = command_parser(NAME, __doc__)
    parser.add_argument("--model", help="open_clip architecture, or the path of its JSON configuration")
    parser.add_argument("--checkpoint", type=Path, help="its weights")
    parser.add_argument("--convert", type=Path, metavar="FILE", help=".npy or .pt with embeddings made elsewhere")
    names = parser.add_mutually_exclusive_group()
    names.add_argument("--json", type=Path, help="COCO's or LVIS's file of instances")
    names.add_argument("--names", type=Path, help="text file, one class per line")
    names.add_argument("--vocabulary", help="names, separated by commas")
    parser.add_argument("--prompts", choices=PROMPTS, help="default: vild")
    parser.add_argument("--tower", help="the text tower in words (default: architecture and hash of the weights)")
    parser.add_argument("--output", type=Path, required=True, help=".safetensors file to write")
    parser.add_argument("--batch-size", type=positive, default=256, help="prompts at a time (default 256)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<index>")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with status 2 and one line on any error that the user can mend."""
    run_command_line(build_parser(), run, argv)


if __name__ == "__main__":
    main()
