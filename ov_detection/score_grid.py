"""AP over a grid of score settings, from regions that an evaluation has kept; what rescore.py runs."""

import math
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, product
from typing import Any

from detection_ap import ImageDetections, detection_ap
from detection_dump import Dump
from detectron2.modeling.postprocessing import detector_postprocess
from fvit.box_predictor import Regions, detect_in
from ov_evaluator import group_metrics, to_detections

from last_vit.evaluation import print_table, progress, write_record

NAMES = ("alpha", "beta", "vlm_temperature", "det_temperature")


def rescore(args: Namespace) -> None:
    """Score anew, print a table, write the record.

    ValueError for a setting out of its range, or as `Dump` and its `regions`.
    """
    grid = {name: getattr(args, name) for name in NAMES}
    for name, values in grid.items():
        is_weight = name in ("alpha", "beta")
        for value in values:
            if not (0 <= value <= 1 if is_weight else 0 < value < math.inf):
                allowed = "in [0, 1]" if is_weight else "above 0"
                raise ValueError(f"--{name.replace('_', '-')} must be {allowed}, got {value}")
    dump = Dump(args.dump, args.json)
    points = score_points(dump.scoring(), grid)
    start = time.perf_counter()
    found = [
        group_metrics(detection_ap(dump.content, dump.classes, images, "box", dump.about["max_dets"]), dump.classes)
        for images in detections_at(dump, points, args.workers)
    ]
    seconds = time.perf_counter() - start
    names = [name for name in found[0] if name.startswith("ap")]
    rows = [[*map(point.get, NAMES), *map(metrics.get, names)] for point, metrics in zip(points, found, strict=True)]
    print_table([[*NAMES, *names], *([f"{value:.4g}" for value in row] for row in rows)])
    if not dump.about["all_regions"] and len(points) > 1:
        print("regions are missing: only the first line is exact (all are with evaluation.dump_regions=1000)")
    path = write_record(
        args,
        "rescore",
        dump.folder.name,
        found[0],
        n_images=len(dump.sizes),
        dataset=dump.record.get("dataset", dump.about["json"]),
        config={"scoring": points[0], "all_regions": dump.about["all_regions"], "grid": grid},
        checkpoint_sha256=dump.record.get("checkpoint_sha256"),
        seconds=seconds,
        device="cpu",
        details=[[*NAMES, *names], *([round(value, 4) for value in row] for row in rows)],
    )
    print(f"{len(dump.sizes)} images at {len(points)} settings in {seconds:.1f} s; written to {path}")


def score_points(own: dict[str, Any], grid: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Score settings: the run's own, then those of the grid, where names without values stay as they are."""
    points = [own]
    for values in product(*(grid.get(name) or [own[name]] for name in NAMES)):
        point = {**own, **dict(zip(NAMES, values, strict=True))}
        if point not in points:
            points.append(point)
    return points


def detections_at(
    dump: Dump, points: Sequence[Mapping[str, Any]], workers: int
) -> Iterator[tuple[ImageDetections, ...]]:
    """What is found on every image, at one point after the other; `workers` are threads.

    ValueError for damaged regions.
    """

    def at_all_points(image: tuple[int, Regions]) -> list[ImageDetections]:
        number, regions = image
        found = [detect_in(regions, dump.classes.is_base, point)[0] for point in points]
        found = [detector_postprocess(each, *dump.sizes[number]) for each in found]
        return [to_detections(number, each, masks=False) for each in found]

    of_images: list[list[ImageDetections]] = []
    regions = dump.regions()
    with ThreadPoolExecutor(workers) as pool, progress(dump.sizes, "score", "image") as bar:
        while some := list(islice(regions, 64)):  # a pool would read all at once
            of_images += pool.map(at_all_points, some)
            bar.update(len(some))
    return zip(*of_images, strict=True)
