"""What the command lines of this folder share: flags for models, images, batches and output, and the result.

Imports neither torch nor a host library, so that --help needs neither.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from last_vit.command_line import MODEL_HELP, positive

if TYPE_CHECKING:
    import torch
    from foreground_images import ForegroundImages
    from torch.utils.data import DataLoader, Dataset

    from last_vit.data.transforms import EvalTransform
    from last_vit.models import ModelArgument, TrainedModel
    from last_vit.preprocessing import Preprocessing

FIGURE_ENDINGS = (".png", ".pdf", ".svg")


def add_model_flags(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """--model, once per model, and the input size that all of them get."""
    add = parser.add_argument
    add("--model", action="append", required=required, metavar="MODEL", help=f"{MODEL_HELP}; once per model")
    add("--image-size", type=positive, help="crop in pixels; default: each model's")
    add("--resize", type=positive, help="shorter side before the crop in pixels; default: each model's")


def add_image_flags(parser: argparse.ArgumentParser, or_imagenet: bool = False) -> None:
    """A folder of images, and what is known about the objects on them.

    Args:
        parser: Gets the flags.
        or_imagenet: Take ImageNet's layout as well, as --imagenet-root in place of --images.
    """
    add = parser.add_argument
    images_help = "folder of images, searched in depth"
    if or_imagenet:
        group = parser.add_mutually_exclusive_group(required=True)
        group.add_argument("--images", type=Path, help=images_help)
        add_imagenet_flags(parser, group)
    else:
        add("--images", type=Path, required=True, help=images_help)
    add(
        "--boxes",
        type=Path,
        help="what is object: COCO's instances_*.json, or a folder of XML files (VOC, ImageNet), one per image",
    )
    add(
        "--masks",
        type=Path,
        help="what is object, by pixel, in place of --boxes: COCO's instances_*.json, or a folder of one mask per "
        "image (PNG, 0 is background and 255 unknown, as VOC's SegmentationObject; or .npy)",
    )
    add("--skip-broken", action="store_true", help="leave out and count images that are unreadable or not annotated")
    add("--dataset-name", help="data set in the results; default: the last two folders of --images")


def add_imagenet_flags(
    parser: argparse.ArgumentParser, group: "argparse._MutuallyExclusiveGroup | None" = None
) -> None:
    """ImageNet's validation images and boxes, in any of its layouts.

    Args:
        parser: Gets the flags.
        group: Of what the images may be named with; None makes --imagenet-root required.
    """
    (group or parser).add_argument(
        "--imagenet-root", type=Path, required=group is None, help="folder that holds val/, or val/ itself"
    )
    parser.add_argument(
        "--imagenet-label-dir", type=Path, help="folder of the XML boxes; default: found beside the images"
    )


def check_image_flags(args: argparse.Namespace) -> None:
    """Refuse flags that would be ignored beside the way in which the images were named.

    Args:
        args: With the flags of `add_image_flags`, ImageNet's among them.

    Raises:
        ValueError: Names the flags that go together.
    """
    if args.imagenet_root is None and args.imagenet_label_dir is not None:
        raise ValueError("--imagenet-label-dir goes with --imagenet-root; for --images give --boxes")
    if args.imagenet_root is not None and (args.boxes is not None or args.masks is not None):
        raise ValueError("--boxes and --masks go with --images; for --imagenet-root give --imagenet-label-dir")


def add_loading_flags(parser: argparse.ArgumentParser) -> None:
    """Batches, loading processes and the device."""
    add = parser.add_argument
    add("--batch-size", type=positive, default=32, help="images per process and step; default 32")
    add("--num-workers", type=int, default=4, help="loading processes; default 4")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:<index>; default auto")


def add_output_flags(parser: argparse.ArgumentParser, figure: str | None) -> None:
    """Where pictures and numbers go.

    Args:
        parser: Gets the flags.
        figure: Default path of the picture; None for a command that draws none.
    """
    add = parser.add_argument
    if figure is not None:
        add_figure_flag(parser, figure)
    add("--output", help="beginning of the names of the files in results/; default: this script's subject")
    add("--table", action="store_true", help="show the results in README's table, in rows called as the models are")


def add_figure_flag(parser: argparse.ArgumentParser, figure: str) -> None:
    """Where the picture goes; `figure` is its default path."""
    endings = ", ".join(FIGURE_ENDINGS)
    parser.add_argument(
        "--figure", type=figure_path, default=Path(figure), help=f"picture to write ({endings}); default {figure}"
    )


def open_images(args: argparse.Namespace, preprocessing: "Preprocessing") -> "ForegroundImages":
    """The images that `add_image_flags` asked for, as a model takes them; says what was left out.

    Raises:
        ValueError, FileNotFoundError: As `ForegroundImages`.
    """
    from foreground_images import ForegroundImages

    from last_vit.runtime import is_main_process

    images = ForegroundImages(
        args.images,
        eval_transform(preprocessing),
        boxes=args.boxes,
        masks=args.masks,
        skip_broken=args.skip_broken,
    )
    left_out = ", ".join(f"{count} {reason}" for reason, count in images.skipped.items() if count)
    if left_out and is_main_process():
        print(f"left out: {left_out}")
    return images


def eval_transform(preprocessing: "Preprocessing") -> "EvalTransform":
    """From an image to what a model takes."""
    from last_vit.data.transforms import EvalTransform

    prep = preprocessing
    return EvalTransform(prep.resize, prep.crop, prep.mean, prep.std, prep.interpolation)


def open_loader(args: argparse.Namespace, images: "Dataset", title: str) -> "DataLoader":
    """Batches of this process's share of the images, behind a progress bar in the main process.

    Args:
        args: With the flags of `add_loading_flags`.
        images: From `open_images`.
        title: Of the progress bar.
    """
    from tqdm import tqdm

    from last_vit.data.loaders import build_test_loader
    from last_vit.runtime import is_main_process

    loader = build_test_loader(images, args.batch_size, args.num_workers)
    return tqdm(loader, desc=title, unit="batch", disable=None if is_main_process() else True, leave=False)


def write_model_result(
    args: argparse.Namespace,
    subject: str,
    argument: "ModelArgument",
    trained: "TrainedModel",
    metrics: Mapping[str, float],
    *,
    n_images: int,
    protocol: str,
    config: Mapping[str, Any],
    seconds: float,
    device: "torch.device",
) -> Path:
    """Write `results/<output>_<model>_<images>.json`, in the main process only.

    Args:
        args: With the flags of `add_output_flags` and `add_image_flags`.
        subject: What was measured, such as "score_distribution": the table's name, and the file's by default.
        argument: The model as it was asked for.
        trained: The model as it was loaded.
        metrics: Finite numbers.
        n_images: Images that the metrics are over.
        protocol: What the numbers depend on besides data and input, in a few words; "" for nothing.
        config: Everything else that they depend on.
        seconds: Of the loop.
        device: Where it ran.

    Returns:
        The written file.
    """
    from last_vit.results import result_name, write_result

    images, prep = image_set_name(args), trained.preprocessing
    return write_result(
        result_name(f"{args.output or subject}_{argument.name}_{images}"),
        metrics,
        n_images=n_images,
        dataset=", ".join(part for part in (images, f"{prep.crop} px", protocol) if part),
        config={
            "model": argument.spec,
            "checkpoint": argument.checkpoint,
            "random_seed": argument.seed,
            "pooling": trained.pooling,
            "pooling_source": trained.pooling_source,
            "resize": prep.resize,
            "crop": prep.crop,
            **config,
        },
        checkpoint_sha256=trained.checkpoint_sha256,
        seconds=seconds,
        device=device,
        table=subject if args.table else None,
        row=argument.name if args.table else None,
    )


def image_set_name(args: argparse.Namespace) -> str:
    """What results call the images: --dataset-name, or the last two folders of --images ("coco/val2017")."""
    return args.dataset_name or "/".join(args.images.resolve().parts[1:][-2:])


def print_table(cells: Sequence[Sequence[str]]) -> None:
    """Print lines of equally many cells in columns, the first flush left and the others flush right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]))


def figure_path(text: str) -> Path:
    """A flag's value that names a picture; a wrong ending is refused before the work, not after it."""
    path = Path(text)
    if path.suffix.lower() not in FIGURE_ENDINGS:
        raise argparse.ArgumentTypeError(f"must end in one of {', '.join(FIGURE_ENDINGS)}, got {text}")
    return path
