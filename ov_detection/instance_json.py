"""COCO's and LVIS's JSON files of instances as a whole: what must fit together in one, and writing one.

Reading one is `read_coco_json` of coco.py. The functions here look at ids only, so they hold for COCO's and LVIS's
official files as for those that ov_detection/make_ov_coco.py and ov_detection/make_ov_lvis.py make of them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from last_vit.atomic_file import atomic_file
from last_vit.checkpoint import shorten

_LVIS_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")


def check_links(content: Mapping[str, Any]) -> None:
    """Refuse content whose parts do not belong together.

    Args:
        content: Of `read_coco_json`.

    Raises:
        ValueError: An image or annotation without id, two of one id, no image at all, an annotation of an image or a
            category that is not listed.
    """
    images = _ids(content["images"], "images")
    if not images:
        raise ValueError("the list of images is empty")
    _ids(content["annotations"], "annotations")
    categories = {entry.get("id") for entry in content["categories"] if isinstance(entry, Mapping)}
    for what, known in (("image_id", images), ("category_id", categories)):
        lost = [entry["id"] for entry in content["annotations"] if entry.get(what) not in known]
        if lost:
            raise ValueError(f"{len(lost)} annotations have an unknown {what}, such as annotation {shorten(lost, 3)}")


def check_lvis_lists(content: Mapping[str, Any]) -> None:
    """Refuse LVIS's content without the lists of what is known to be absent, or not fully annotated, per image.

    LVIS annotates a few classes per image only: without the lists, a detection of any other class would be counted as
    wrong, or not be counted, without anyone knowing.

    Args:
        content: Of `read_coco_json`.

    Raises:
        ValueError: An image without `neg_category_ids` or `not_exhaustive_category_ids`.
    """
    for name in _LVIS_LISTS:
        bad = [entry.get("id") for entry in content["images"] if not isinstance(entry.get(name), list)]
        if bad:
            raise ValueError(
                f"{len(bad)} of {len(content['images'])} images have no list {name} (such as image "
                f"{shorten(bad, 3)}), without which LVIS's metrics are undefined: take the official lvis_v1_*.json"
            )


def write_instances(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write content as one JSON file; an older file stays until the new one is whole.

    Raises:
        OSError: The folder or the disk refuses.
    """
    with atomic_file(path) as file:
        file.write(json.dumps(content, separators=(",", ":"), allow_nan=False).encode())


def _ids(entries: list[Any], what: str) -> set[int]:
    ids: set[int] = set()
    for place, entry in enumerate(entries):
        number = entry.get("id") if isinstance(entry, Mapping) else None
        if type(number) is not int:
            raise ValueError(f"{what}[{place}] has no whole number as id: {shorten([entry])[:200]}")
        if number in ids:
            raise ValueError(f"{what} share the id {number}")
        ids.add(number)
    return ids
