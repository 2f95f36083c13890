"""COCO-Stuff's raw maps (ids 0 to 181, 255 unlabelled) -> *_labelTrainIds.png with the 171 classes, 255 ignored.

    python clip/convert_coco_stuff.py --root coco_stuff164k --output coco_stuff164k
    python clip/convert_coco_stuff.py --root coco_stuff164k --output elsewhere --split train val --num-workers 16

Raw maps are looked for in <root>/stuffthingmaps/val2017, <root>/annotations/val2017 (mmsegmentation's place) and
<root>/val2017 (as stuffthingmaps_trainval2017.zip of https://github.com/nightrome/cocostuff unpacks). Written are
<output>/annotations/val2017/*_labelTrainIds.png. Needed only by other programs: clip/seg_sets.py reads raw maps.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
from label_conversion import add_conversion_flags, add_target_flags, convert, look_up
from seg_id_tables import coco_stuff_table
from seg_layouts import find_split

from last_vit.command_line import command
from last_vit.data.image_files import list_files

ROOT_HELP = "folder of the raw maps, such as the one with stuffthingmaps/"
_FOLDERS = ("stuffthingmaps", "annotations", ".")


def convert_raw_maps(args: argparse.Namespace, dataset: str, suffix: str, table: np.ndarray) -> None:
    """Convert the raw maps of all --split by a table; `suffix` ends the written names."""
    for split in args.split:
        folders = [args.root / name / find_split(dataset, split)[0] for name in _FOLDERS]
        found = {}
        for folder in reversed(folders):
            maps = [path for path in list_files(folder, (".png",)) if not path.name.endswith("TrainIds.png")]
            found = {folder: maps} if maps else found
        if not found:
            raise FileNotFoundError(
                f"no raw maps (*.png) in {', '.join(map(str, folders))}; expected stuffthingmaps_trainval2017.zip of "
                "https://github.com/nightrome/cocostuff, unpacked to stuffthingmaps/"
            )
        ((folder, maps),) = found.items()
        target = args.output / "annotations" / folder.name
        sources = {target / f"{path.stem}{suffix}": path for path in maps}
        convert(sources, partial(look_up, table=table), dataset, split, args)


def _run(args: argparse.Namespace) -> None:
    convert_raw_maps(args, "coco_stuff", "_labelTrainIds.png", coco_stuff_table())


@command(_run)
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("--root", type=Path, required=True, help=ROOT_HELP)
    add_target_flags(parser)
    add_conversion_flags(parser)


if __name__ == "__main__":
    main()
