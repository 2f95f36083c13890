"""COCO-Stuff's raw maps (ids 0 to 181, 255 unlabelled) -> *_labelTrainIds.png with the 171 classes, 255 ignored.

    python clip/convert_coco_stuff.py --root coco_stuff164k --output coco_stuff164k
    python clip/convert_coco_stuff.py --root coco_stuff164k --split train val --beside --num-workers 16

Raw maps are looked for in <root>/stuffthingmaps/val2017, <root>/annotations/val2017 (mmsegmentation's place) and
<root>/val2017 (as stuffthingmaps_trainval2017.zip of https://github.com/nightrome/cocostuff unpacks). Written are
<output>/annotations/val2017/*_labelTrainIds.png. Needed only by other programs: clip/seg_sets.py reads raw
maps as they are.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from label_conversion import Conversion, add_conversion_flags, add_target_flags, check_target, convert, look_up
from seg_id_tables import coco_stuff_table

from last_vit.command_line import command_parser, run_command_line

SPLITS = ("train", "val")
ROOT_HELP = "folder of the raw maps, such as the one with stuffthingmaps/"
_FOLDERS = ("stuffthingmaps/{split}", "annotations/{split}", "{split}")


def add_split_flag(parser: argparse.ArgumentParser) -> None:
    """--split, one or several."""
    parser.add_argument("--split", nargs="+", choices=SPLITS, default=["val"], help="default val")


def find_raw_maps(root: Path, split: str) -> list[Path]:
    """The raw maps of a split ("val2017"), from the first folder that has any, sorted.

    Raises:
        FileNotFoundError: None there.
    """
    from last_vit.data.image_files import list_files

    folders = [root / name.format(split=split) for name in _FOLDERS]
    for folder in folders:
        found = [path for path in list_files(folder, (".png",)) if not path.name.endswith("TrainIds.png")]
        if found:
            return found
    raise FileNotFoundError(
        f"no raw maps (*.png) in {', '.join(map(str, folders))}; expected stuffthingmaps_trainval2017.zip of "
        "https://github.com/nightrome/cocostuff, unpacked to stuffthingmaps/"
    )


def convert_raw_maps(args: argparse.Namespace, dataset: str, suffix: str, table: np.ndarray) -> None:
    """Convert all splits that the flags name.

    Args:
        args: Of the command line.
        dataset: Key of the data set, for the official counts.
        suffix: End of the written names.
        table: From raw ids to classes.

    Raises:
        FileNotFoundError, ValueError, OSError: As `find_raw_maps` and `convert`.
    """
    from seg_layouts import find_split

    for split in args.split:
        word, expected = find_split(dataset, split)
        maps = find_raw_maps(args.root, word)
        folder = maps[0].parent if args.beside else args.output / "annotations" / word
        check_target(maps[0].parent, folder, args.beside)
        conversions = [Conversion(path, folder / f"{path.stem}{suffix}") for path in maps]
        convert(conversions, partial(look_up, table=table), what=f"{dataset} {split}", expected=expected, args=args)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with status 2 and one line on any error that the user can mend."""
    parser = command_parser("convert_coco_stuff.py", __doc__)
    parser.add_argument("--root", type=Path, required=True, help=ROOT_HELP)
    add_split_flag(parser)
    add_target_flags(parser)
    add_conversion_flags(parser)
    run_command_line(
        parser, lambda args: convert_raw_maps(args, "coco_stuff", "_labelTrainIds.png", coco_stuff_table()), argv
    )


if __name__ == "__main__":
    main()
