"""Cityscapes' *_gtFine_labelIds.png -> *_gtFine_labelTrainIds.png with the 19 evaluated classes, 255 ignored.

    python clip/convert_cityscapes.py --root cityscapes --output cityscapes --split train val

Written are <output>/gtFine/val/<city>/*_gtFine_labelTrainIds.png, where mmsegmentation looks for them when <output> is
the root. Needed only by other programs: clip/seg_sets.py reads labelIds as they are.
"""

import argparse
from functools import partial
from pathlib import Path

from label_conversion import add_conversion_flags, add_target_flags, convert, look_up
from seg_id_tables import cityscapes_table

from last_vit.command_line import command
from last_vit.data.image_files import list_files

SOURCE, TARGET = "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"


def _run(args: argparse.Namespace) -> None:
    for split in args.split:
        folder = args.root / "gtFine" / split
        files = list_files(folder, (SOURCE.lower(),))
        if not files:
            raise FileNotFoundError(
                f"no *{SOURCE} below {folder}; expected gtFine_trainvaltest.zip of https://www.cityscapes-dataset.com"
            )
        targets = [path.relative_to(folder).with_name(path.name.removesuffix(SOURCE) + TARGET) for path in files]
        sources = {args.output / "gtFine" / split / target: path for target, path in zip(targets, files, strict=True)}
        convert(sources, partial(look_up, table=cityscapes_table()), "cityscapes", split, args)


@command(_run)
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("--root", type=Path, required=True, help="folder with gtFine/")
    add_target_flags(parser)
    add_conversion_flags(parser)


if __name__ == "__main__":
    main()
