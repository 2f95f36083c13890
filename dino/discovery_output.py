"""What eval_object_discovery.py says, writes and saves: one table, one record per method, one file of boxes."""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from discover_boxes import DiscoveryPass
from discovery_methods import DiscoveryMethod
from object_lists import ObjectList
from torch import distributed

from last_vit.models import ModelArgument, TrainedModel
from last_vit.results import dataset_name, result_name, write_result
from last_vit.runtime import describe_device, world_size

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class MethodResult:
    """What one method did on all images, whichever process saw them.

    Attributes:
        method: The method.
        metrics: In percent: "corloc", "mean_iou", and "corloc_whole_image" of a box around the whole image; in images
            per second of one process: "fps_model", "fps_boxes" and "fps_total".
        by_class: Class -> (CorLoc in percent, images that show it); empty unless asked for.
        boxes: Image name -> its box.
        best_iou: Image's index -> its box's largest IoU with an annotated object.
    """

    method: DiscoveryMethod
    metrics: dict[str, float]
    by_class: dict[str, tuple[float, int]]
    boxes: dict[str, Box]
    best_iou: dict[int, float]


def gather_results(done: DiscoveryPass, num_images: int) -> list[MethodResult]:
    """Bring the processes' parts together; every process must call it.

    Raises:
        ValueError: The processes did not see every image once.
    """
    whole_image = done.whole_image.compute()
    if whole_image["num_images"] != num_images:
        raise ValueError(f"the loader gave {whole_image['num_images']} of {num_images} images, or some of them twice")
    model = done.model_watch.seconds_per_image()
    results = []
    for run in done.runs:
        counted, boxes = run.corloc.compute(), run.stopwatch.seconds_per_image()
        parts = [(run.boxes, run.best_iou)]
        if world_size() > 1:
            parts = [None] * world_size()
            distributed.all_gather_object(parts, (run.boxes, run.best_iou))
        metrics = {
            "corloc": counted["corloc"],
            "mean_iou": counted["mean_iou"],
            "corloc_whole_image": whole_image["corloc"],
            "fps_model": 1 / model,
            "fps_boxes": 1 / boxes,
            "fps_total": 1 / (model + boxes),
        }
        results.append(
            MethodResult(
                method=run.method,
                metrics=metrics,
                by_class=run.corloc.compute_by_class(),
                boxes={name: box for part, _ in parts for name, box in part.items()},
                best_iou={index: iou for _, part in parts for index, iou in part.items()},
            )
        )
    return results


def print_table(
    argument: ModelArgument,
    objects: ObjectList,
    results: Sequence[MethodResult],
    patch_size: int,
    device: torch.device,
) -> None:
    """The table of one model, and by class where that was asked for."""
    left_out = ", ".join(f"{count} {reason}" for reason, count in objects.skipped.items())
    print(
        f"{argument.name}: {len(objects.images)} images at native resolution, patches of {patch_size} pixels, "
        f"{describe_device(device)}; {_num_empty(objects)} images without any object; left out: {left_out or 'none'}"
    )
    width = max(len("whole image"), *(len(result.method.name) for result in results))
    print(f"  {'':{width}}  CorLoc %  mean IoU %  images/s: model     boxes     total  protocol")
    for result in results:
        m = result.metrics
        print(
            f"  {result.method.name:{width}}  {m['corloc']:8.2f}  {m['mean_iou']:10.2f}  {m['fps_model']:15.2f}"
            f"  {m['fps_boxes']:8.1f}  {m['fps_total']:8.2f}  {result.method.protocol}"
        )
    print(f"  {'whole image':{width}}  {results[0].metrics['corloc_whole_image']:8.2f}  (for comparison: no model)")
    if results[0].by_class:
        width = max(len(name) for name in results[0].by_class)
        print(f"  CorLoc % by class: {'; '.join(result.method.name for result in results)}")
        for name, (_, shown) in results[0].by_class.items():
            values = "  ".join(f"{result.by_class[name][0]:6.1f}" for result in results)
            print(f"  {name:{width}}  {values}  ({shown} images)")


def write_records(
    args: argparse.Namespace,
    argument: ModelArgument,
    trained: TrainedModel,
    objects: ObjectList,
    results: Sequence[MethodResult],
    patch_size: int,
    seconds: float,
    device: torch.device,
) -> Iterator[Path]:
    """Write `results/<output>_<model>_<method>_<data set>.json` for every method, in the main process only."""
    images, prep = objects_name(args), trained.preprocessing
    for result in results:
        method = result.method
        protocol = [method.protocol, *([args.dtype] if args.dtype != "float32" else [])]
        kind = method.name.partition(",")[0]
        by_class = {f"corloc/{name}": value for name, (value, _) in result.by_class.items()}
        yield write_result(
            result_name(f"{args.output}_{argument.name}_{method.name}_{images}"),
            {**result.metrics, **by_class},
            n_images=len(objects.images),
            dataset=", ".join([images, "native", *protocol]),
            config={
                "model": argument.spec,
                "checkpoint": argument.checkpoint,
                "random_seed": argument.seed,
                "pooling": trained.pooling,
                "pooling_source": trained.pooling_source,
                "method": kind,
                "protocol": method.protocol,
                "mean": prep.mean,
                "std": prep.std,
                "patch_size": patch_size,
                "batch_size": args.batch_size,
                "dtype": args.dtype,
                "without_object": _num_empty(objects),
                "left_out": dict(objects.skipped),
            },
            checkpoint_sha256=trained.checkpoint_sha256,
            seconds=seconds,
            device=device,
            table="corloc" if args.table else None,
            row=f"{argument.name}, {kind}" if args.table else None,
        )


def objects_name(args: argparse.Namespace) -> str:
    """What results call the images: --dataset-name, or after the folders; with the number when they are a part."""
    if args.dataset_name:
        name = args.dataset_name
    elif args.voc_root is not None:
        name = f"{_last_folders(args.voc_root)} {args.voc_split}"
    elif args.imagenet_root is not None:
        name = f"{dataset_name(args.imagenet_root, 'val')} val"
    else:
        name = _last_folders(args.coco_images) + (f" {args.coco_list.stem}" if args.coco_list else "")
    return name if args.num_images is None else f"{name} ({args.num_images} images of it)"


def save_boxes(path: Path, boxes: Mapping[str, Mapping[str, Mapping[str, Box]]]) -> None:
    """Write model -> method -> image -> [x1, y1, x2, y2] as JSON; images in the order of their names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ordered = {
        model: {method: dict(sorted(found.items())) for method, found in methods.items()}
        for model, methods in boxes.items()
    }
    path.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


def _num_empty(objects: ObjectList) -> int:
    return sum(len(image.labels) == 0 for image in objects.images)


def _last_folders(path: Path) -> str:
    return "/".join(path.expanduser().resolve().parts[1:][-2:])
