"""Cityscapes' labelIds or polygons -> *_gtFine_labelTrainIds.png with the 19 evaluated classes, 255 ignored.

    python clip/convert_cityscapes.py --root cityscapes --beside
    python clip/convert_cityscapes.py --root cityscapes --source polygons --output elsewhere --split train val

From *_gtFine_labelIds.png by a table (fast), or drawn from *_gtFine_polygons.json as cityscapesScripts does: polygons
in the file's order, "<label>group" as <label>, deleted ones and license plates left out. Written are
<output>/gtFine/val/<city>/*_gtFine_labelTrainIds.png or, with --beside, the same names where the sources are, as
mmsegmentation wants them. Needed only by other programs: clip/seg_sets.py reads labelIds as they are.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from label_conversion import add_conversion_flags, add_target_flags, convert, look_up, target_folder
from PIL import Image, ImageDraw
from seg_id_tables import CITYSCAPES_LABELS, CITYSCAPES_UNDRAWN, IGNORED, cityscapes_table

from last_vit.command_line import command
from last_vit.data.image_files import list_files

SUFFIX = "_gtFine_labelTrainIds.png"
SOURCES = {"labelIds": "_gtFine_labelIds.png", "polygons": "_gtFine_polygons.json"}


def draw_polygons(path: Path) -> np.ndarray:
    """The labels of a polygons file: uint8 [H, W], 0 to 18 or 255; ValueError for another format or label."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        table = cityscapes_table()
        image = Image.new("L", (content["imgWidth"], content["imgHeight"]), IGNORED)
        draw = ImageDraw.Draw(image)
        for number, entry in enumerate(content["objects"]):
            label = None if entry.get("deleted") else _label_id(entry["label"])
            if label is not None:
                points = [(x, y) for x, y in entry["polygon"]]
                if len(points) < 2:
                    raise ValueError(f"object {number} has {len(points)} points")
                draw.polygon(points, fill=int(table[label]))
    except KeyError as error:
        raise ValueError(f"{path} has no {error.args[0]}; expected Cityscapes' polygons") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}; expected Cityscapes' polygons") from error
    return np.array(image)


def _label_id(name: Any) -> int | None:
    """Id of a label's name; None for one that is never drawn."""
    if name not in CITYSCAPES_LABELS and str(name).removesuffix("group") in (*CITYSCAPES_LABELS, CITYSCAPES_UNDRAWN):
        name = str(name).removesuffix("group")
    if name == CITYSCAPES_UNDRAWN:
        return None
    if name not in CITYSCAPES_LABELS:
        raise ValueError(f"label {name!r} is none of Cityscapes'")
    return CITYSCAPES_LABELS.index(name)


def _run(args: argparse.Namespace) -> None:
    ending = SOURCES[args.source]
    read = draw_polygons if args.source == "polygons" else partial(look_up, table=cityscapes_table())
    for split in args.split:
        folder = args.root / "gtFine" / split
        files = list_files(folder, (ending.lower(),))
        if not files:
            raise FileNotFoundError(
                f"no *{ending} below {folder}; expected gtFine_trainvaltest.zip of https://www.cityscapes-dataset.com"
            )
        target = target_folder(folder, f"gtFine/{split}", args)
        sources = {
            target / path.relative_to(folder).with_name(path.name[: -len(ending)] + SUFFIX): path for path in files
        }
        convert(sources, read, "cityscapes", split, args)


@command(_run)
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("--root", type=Path, required=True, help="folder with gtFine/")
    parser.add_argument("--source", choices=tuple(SOURCES), default="labelIds", help="what to read, default labelIds")
    add_target_flags(parser)
    add_conversion_flags(parser)


if __name__ == "__main__":
    main()
