"""Object discovery as eval_object_discovery.py runs it: images and methods of its flags, then table, records, pictures.

Pictures are sheets of hits above and misses below, each with mask, predicted box and objects, chosen by a seed among
the hits and among the misses of each method; they go through the model once more, in float32, for their masks.
"""

import argparse
import json
import random
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import discovery_images as native
import numpy as np
import object_discovery as known
import torch
from discover_boxes import MIN_IOU, MethodRun, ScoredBox, corloc_by_class, discover_boxes
from eval_options import FEATURES
from last_attention import find_attention_layer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from object_discovery import Box
from PIL import Image
from torch import Tensor, nn

from last_vit.atomic_file import atomic_file
from last_vit.dense import find_patch_size, takes_any_size
from last_vit.evaluation import describe_model, folder_name, print_table, progress, say_left_out, write_record
from last_vit.models import ModelArgument, TrainedModel, parse_model_arguments
from last_vit.results import dataset_name, result_name
from last_vit.runtime import describe_device, is_main_process, process_group

# Okabe and Ito's palette, told apart by colour-blind readers; objects white with a dark edge, seen on anything
HIT, MISS, OBJECT, EDGE = "#56B4E9", "#E69F00", "#ffffff", "#202020"
_COLUMNS, _PANEL, _DIMMED = 4, 2.4, 0.35


def run(args: argparse.Namespace) -> None:
    """Every model over all images; prints and writes in the main process."""
    saved = {}
    with process_group(args.device) as device:
        objects, name = open_objects(args)
        for argument in parse_model_arguments(args.model):
            trained = argument.load()
            methods = choose_methods(args, trained)
            prep = trained.preprocessing
            images = native.DiscoveryImages(objects, prep.mean, prep.std, args.resize)
            start, model = time.perf_counter(), trained.model.to(device)
            sizes = {each.path.name: native.resized_hw(each.frame_hw, args.resize) for each in objects.images}
            patch_size = fitting_patch_size(argument.name, model, prep.crop, sizes)
            batches = native.build_native_loader(images, patch_size, args.batch_size, args.num_workers)
            batches, dtype = progress(batches, argument.name), getattr(torch, args.dtype)
            runs = discover_boxes(model, batches, methods, patch_size, device, dtype)
            seconds = time.perf_counter() - start
            saved[argument.name] = {
                each.method.name: {images.names[i]: in_file(images, i, found) for i, found in each.found.items()}
                for each in runs
            }
            if is_main_process():
                _report(args, argument, trained, images, name, runs, patch_size, seconds, device)
                for each in runs if args.pictures is not None else ():
                    print(f"written {draw_sheet(args, argument, trained.model, images, each, patch_size)}")
        if args.save_boxes is not None and is_main_process():
            with atomic_file(args.save_boxes) as file:
                file.write((json.dumps(saved, indent=1) + "\n").encode())


def open_objects(args: argparse.Namespace) -> tuple[native.ObjectList, str]:
    """The images that the flags name, with their objects, and what results call them."""
    coco = (args.coco_images, args.coco_json)
    layouts = {"--voc-root": args.voc_root, "--coco-images and --coco-json": coco[0] or coco[1]}
    layouts["--imagenet-root"] = args.imagenet_root
    given = [flag for flag, value in layouts.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"the images come from one of {', '.join(layouts)}; got {' and '.join(given) or 'none'}")
    if None in coco and (any(coco) or args.coco_list is not None):
        raise ValueError("COCO needs both --coco-images and --coco-json; --coco-list chooses among their images")
    if args.voc_root is not None:
        objects = native.list_voc_objects(args.voc_root, args.voc_split, args.skip_broken)
        name = f"{folder_name(args.voc_root)} {args.voc_split}"
    elif args.imagenet_root is not None:
        objects = native.list_imagenet_objects(args.imagenet_root, args.skip_broken)
        name = f"{dataset_name(args.imagenet_root, 'val')} val"
    else:
        objects = native.list_coco_objects(*coco, args.coco_list, args.skip_broken)
        name = folder_name(args.coco_images) + (f" {args.coco_list.stem}" if args.coco_list else "")
    name = args.dataset_name or name
    if args.num_images is not None:
        total, number = len(objects.images), args.num_images
        if number > total:
            raise ValueError(f"--num-images {number} is more than the {total} images that there are")
        objects = objects._replace(images=[objects.images[i * total // number] for i in range(number)])
        name += f" ({number} images of it)"
    return native.leave_out_broken(objects) if args.skip_broken else objects, name


def choose_methods(args: argparse.Namespace, trained: TrainedModel) -> list[known.DiscoveryMethod]:
    """The methods that the flags name, each once; a last attention layer that they need and cannot read is an error."""
    features = FEATURES[args.which_features]
    scores = partial(known.patch_score_method, global_token=args.global_token, last_pool=trained.selection())
    made = {
        "patch-score": [scores(component) for component in dict.fromkeys(args.component)],
        "lost": [known.lost_method(args.k_patches, features)],
        "dino-seg": [known.dino_seg_method(args.dino_seg_head, not args.mended)],
        "tokencut": [known.tokencut_method(args.tau, args.eps, features)],
    }
    methods = [method for name in dict.fromkeys(args.method) for method in made[name]]
    if any(method.needs_attention for method in methods):
        find_attention_layer(trained.model)
    return methods


def fitting_patch_size(name: str, model: nn.Module, side: int, sizes: Mapping[str, tuple[int, int]]) -> int:
    """A model's patch size in pixels; ValueError where it takes only its own `side`, and the images have other sizes.

    `sizes` are (height, width) of the images by their names.
    """
    patch_size = find_patch_size(model, side)
    grid = side // patch_size
    other = [file for file, image_hw in sizes.items() if {-(-length // patch_size) for length in image_hw} != {grid}]
    if other and not takes_any_size(model, side, patch_size):
        height, width = sizes[other[0]]
        raise ValueError(
            f"model {name!r} takes {side} x {side} pixels only, and {len(other)} of {len(sizes)} images are of other "
            f"sizes, such as {other[0]} ({width} x {height}, width x height): give --resize {side} {side}, or "
            "dino:<arch>/<patch>@FILE, which takes any size and reads the weights of timm's plain ViTs, too"
        )
    return patch_size


def in_file(images: native.DiscoveryImages, index: int, found: ScoredBox) -> Box:
    """A box in the pixels of the image's file."""
    if not images.resize:
        return found.box_xyxy
    scales = [own / seen for own, seen in zip(images.file_hw(index), images.image_hw(index), strict=True)]
    return tuple(edge * scales[1 - place % 2] for place, edge in enumerate(found.box_xyxy))


def _report(
    args: argparse.Namespace,
    argument: ModelArgument,
    trained: TrainedModel,
    images: native.DiscoveryImages,
    images_name: str,
    runs: Sequence[MethodRun],
    patch_size: int,
    seconds: float,
    device: torch.device,
) -> None:
    """One table, or two with CorLoc by class, and one record per method."""
    objects = images.objects
    num_empty = sum(len(image.labels) == 0 for image in objects.images)
    print(
        f"{argument.name}: {len(images)} images, {_size_words(args.resize)}, patches of {patch_size} pixels, "
        f"{describe_device(device)}; {num_empty} images without any object"
    )
    say_left_out(objects.skipped)
    names = ("corloc", "mean_iou", "fps_model", "fps_boxes", "fps_total")
    cells = [["method", "CorLoc %", "mean IoU %", "images/s: model", "boxes", "total", "protocol"]]
    cells += [[run.method.name, *(f"{run.metrics[name]:.2f}" for name in names), run.method.protocol] for run in runs]
    print_table([*cells, ["whole image", f"{runs[0].metrics['corloc_whole_image']:.2f}", "", "", "", "", "no model"]])
    by_class = [corloc_by_class(run.found.values(), objects.classes) if args.per_class else {} for run in runs]
    if args.per_class:
        cells = [["CorLoc % by class", *(run.method.name for run in runs), "images"]]
        for name, (_, shown) in by_class[0].items():
            cells.append([name, *(f"{each[name][0]:.1f}" for each in by_class), str(shown)])
        print_table(cells)
    for run, classes in zip(runs, by_class, strict=True):
        method, kind = run.method, run.method.name.partition(",")[0]
        protocol = [method.protocol, *([args.dtype] if args.dtype != "float32" else [])]
        path = write_record(
            args,
            "corloc",
            f"{argument.name}, {kind}",
            run.metrics | {f"corloc/{name}": value for name, (value, _) in classes.items()},
            dataset=", ".join([images_name, _size_words(args.resize), *protocol]),
            n_images=len(run.found),
            config={
                **describe_model(argument, trained),
                "method": kind,
                "protocol": method.protocol,
                "patch_size": patch_size,
                "batch_size": args.batch_size,
                "dtype": args.dtype,
                "without_object": num_empty,
                "left_out": dict(objects.skipped),
            },
            checkpoint_sha256=trained.checkpoint_sha256,
            seconds=seconds,
            device=device,
        )
        print(f"written {path}")


def _size_words(resize: Sequence[int]) -> str:
    return f"{' x '.join(map(str, resize))} px" if resize else "native"


def choose_images(best_iou: dict[int, float], number: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices of hits and misses, `number` in all, half and half; where one kind is short, the other fills up."""
    drawn = sorted(best_iou)
    random.Random(seed).shuffle(drawn)  # noqa: S311 (no secret)
    hits = [index for index in drawn if best_iou[index] >= MIN_IOU]
    misses = [index for index in drawn if best_iou[index] < MIN_IOU]
    num_hits = min(len(hits), max((number + 1) // 2, number - len(misses)))
    return sorted(hits[:num_hits]), sorted(misses[: number - num_hits])


def draw_sheet(
    args: argparse.Namespace,
    argument: ModelArgument,
    model: nn.Module,
    images: native.DiscoveryImages,
    run: MethodRun,
    patch_size: int,
) -> Path:
    """Write one method's picture into `args.pictures`: rows of hits, then rows of misses."""
    best_iou = {index: found.best_iou for index, found in run.found.items()}
    chosen = choose_images(best_iou, args.num_pictures, args.seed)
    rows = [kind[first : first + _COLUMNS] for kind in chosen for first in range(0, len(kind), _COLUMNS)]
    figure = Figure(figsize=(_PANEL * _COLUMNS, 0.85 * _PANEL * len(rows) + 0.9), dpi=150, layout="constrained")
    for panels, row in zip(figure.subplots(len(rows), _COLUMNS, squeeze=False), rows, strict=True):
        for panel in panels:
            panel.set_axis_off()
        for panel, index in zip(panels, row, strict=False):
            _draw_image(panel, model, images, run, index, patch_size)
    handles = [
        Patch(facecolor="none", edgecolor=HIT, linewidth=2, label=f"predicted, IoU >= {MIN_IOU}"),
        Patch(facecolor="none", edgecolor=MISS, linewidth=2, label="predicted, less"),
        Patch(facecolor="none", edgecolor="#888888", linewidth=1.2, label="annotated objects (white)"),
        Patch(facecolor="#555555", edgecolor="none", label="dimmed: outside the mask"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    title = f"{argument.name}: {run.method.name} ({run.method.protocol})"
    figure.suptitle(f"{title}\nCorLoc {run.metrics['corloc']:.1f} % of {len(images)} images", fontsize=10)
    args.pictures.mkdir(parents=True, exist_ok=True)
    path = args.pictures / f"{result_name(f'{argument.name}_{run.method.name}')}.png"
    figure.savefig(path)
    return path


@torch.inference_mode()
def find_boxes(
    model: nn.Module, image: Tensor, methods: Sequence[known.DiscoveryMethod], patch_size: int, name: str = "the image"
) -> list[tuple[Box, known.PatchMask]]:
    """A box and the patches behind it per method, from one forward pass over an image [3, H, W], normalised."""
    padded = native.pad_to_patch(image, patch_size, name)[None].to(next(model.parameters()).device)
    features = known.read_features(model, padded, methods)
    return [method.boxes(features, [tuple(image.shape[1:])], patch_size)[0] for method in methods]


def _draw_image(
    panel: Axes, model: nn.Module, images: native.DiscoveryImages, run: MethodRun, index: int, patch_size: int
) -> None:
    sample = images[index]
    ((_, patches),) = find_boxes(model, sample["image"], [run.method], patch_size)
    draw_mask(panel, images.picture(index), patches.mask, patch_size)
    for box in sample["objects_xyxy"].tolist():
        draw_box(panel, box, OBJECT, 1.2)
    box, iou, _ = run.found[index]
    kind, color = ("hit", HIT) if iou >= MIN_IOU else ("miss" if len(sample["labels"]) else "no object", MISS)
    draw_box(panel, box, color)
    panel.set_title(f"{kind}, IoU {iou:.2f}", fontsize=8)


def draw_mask(panel: Axes, picture: Image.Image, mask: np.ndarray, patch_size: int) -> None:
    """Show an image, dark outside a mask of its patches, bool [h, w], with room for a box on its border."""
    width, height = picture.size
    is_found = mask.repeat(patch_size, axis=0).repeat(patch_size, axis=1)[:height, :width, None]
    pixels = np.asarray(picture, dtype=np.float32) / 255
    panel.imshow(np.where(is_found, pixels, _DIMMED * pixels))
    panel.set(xlim=(-3, width + 3), ylim=(height + 3, -3))


def draw_box(panel: Axes, box: Sequence[float], color: str, width: float = 2.2) -> None:
    """A box with a dark edge, seen on anything."""
    (x1, y1, x2, y2), edge = box, withStroke(linewidth=width + 1.3, foreground=EDGE)
    # imshow puts pixel centres on whole numbers: pixel x covers x - 0.5 to x + 0.5
    corner, look = (x1 - 0.5, y1 - 0.5), {"edgecolor": color, "linewidth": width, "path_effects": [edge]}
    panel.add_patch(Rectangle(corner, x2 - x1, y2 - y1, fill=False, **look))
