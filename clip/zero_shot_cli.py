"""What the zero-shot evaluations of classification share: flags, labelled images, CLIPs, class embeddings, records.

Imports neither torch nor a host library, so that --help needs neither.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from last_vit.command_line import positive

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.utils.data import DataLoader

    from last_vit.clip_models import LoadedClip
    from last_vit.data.imagenet import ImageNetDataset
    from last_vit.models import ModelArgument

MODEL_HELP = (
    "[NAME=]open_clip:ARCH@CHECKPOINT[,pool=KIND][,top_k=K][,variant=release|paper]; ARCH is an open_clip name or a "
    "model-config .json, CHECKPOINT a local file or `random`; once per model"
)
SUBJECT = "zero_shot_cls"


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """--model, once per model, and the arithmetic."""
    add = parser.add_argument
    add("--model", action="append", required=True, metavar="MODEL", help=MODEL_HELP)
    add("--precision", choices=("fp32", "fp16", "bf16"), default="fp32", help="of the weights; default fp32")


def add_image_flags(parser: argparse.ArgumentParser) -> None:
    """Labelled images, and what their classes are called."""
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--imagenet-root", type=Path, help="folder that holds ImageNet's val/, val/ itself, or Kaggle's")
    group.add_argument("--images", type=Path, help="any folder with a folder of images per class")
    add = parser.add_argument
    add(
        "--class-names",
        metavar="SOURCE",
        help="`imagenet` (open_clip's names), `folders` (the folders' own), or a file: one class per line, synonyms "
        "between ';' or ',', in the order of the sorted folders; LOC_synset_mapping.txt; or JSON. Default: imagenet, "
        "if the folders are its",
    )
    add(
        "--templates",
        default="openai",
        help="`openai` (80 prompts), `simple` (7), a template such as 'a photo of a {}', or a file with one per line; "
        "default openai",
    )
    add(
        "--text-cache",
        type=Path,
        metavar="DIR",
        help="where class embeddings are kept from run to run; default ~/.cache/last_vit/class_embeddings",
    )
    add("--no-text-cache", action="store_true", help="neither read nor keep class embeddings")
    add("--skip-broken", action="store_true", help="leave out and count unreadable images")
    add("--dataset-name", help="of the images in the results; default: the folder's")


def add_loading_flags(parser: argparse.ArgumentParser) -> None:
    """Batches, loading processes and the device."""
    add = parser.add_argument
    add("--batch-size", type=positive, default=64, help="images per process and step; default 64")
    add("--num-workers", type=int, default=4, help="loading processes; default 4")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:<index>; default auto")


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """Where the numbers go."""
    add = parser.add_argument
    add("--output", help="beginning of the names of the files in results/; default: this script's subject")
    add("--table", action="store_true", help="show the results in README's table, in rows called as the models are")


def open_class_images(args: argparse.Namespace, boxes: bool = False) -> "ImageNetDataset":
    """The labelled images of the flags, without a transform yet; says what was left out.

    Args:
        args: With the flags of `add_image_flags`.
        boxes: As in `ImageNetDataset`.

    Raises:
        ValueError, FileNotFoundError: As `ImageNetDataset`.
    """
    from last_vit.data.imagenet import ImageNetDataset
    from last_vit.runtime import is_main_process

    root, split = (args.images, None) if args.imagenet_root is None else (args.imagenet_root, "val")
    images = ImageNetDataset(root, split, boxes=boxes, skip_broken=args.skip_broken)
    if not images.classes:
        raise ValueError(f"{images.folder} holds images without labels; sort them into a folder per class")
    left_out = ", ".join(f"{count} {reason}" for reason, count in images.skipped.items() if count)
    if left_out and is_main_process():
        print(f"left out: {left_out}")
    return images


def images_name(args: argparse.Namespace) -> str:
    """What results call the images, such as "ImageNet-1k val" or "flowers/test"."""
    from last_vit.results import dataset_name

    if args.imagenet_root is None:
        return args.dataset_name or "/".join(args.images.resolve().parts[1:][-2:])
    return f"{args.dataset_name or dataset_name(args.imagenet_root, 'val')} val"


def load_clip_argument(argument: "ModelArgument", args: argparse.Namespace, device: "torch.device") -> "LoadedClip":
    """The CLIP of one --model on a device, its image tower run once, so that what does not fit shows before the work.

    Raises:
        ValueError: A model that is no CLIP, without weights, or as `load_clip`; the message names the model.
        FileNotFoundError: As `load_clip`.
    """
    from last_vit.clip_models import load_clip, split_clip_spec

    try:
        host, _, name = argument.spec.partition(":")
        if host != "open_clip":
            raise ValueError(
                f"zero-shot needs a text tower, so a CLIP, open_clip:ARCH@CHECKPOINT; got {argument.spec!r}"
            )
        arch, file = split_clip_spec(name)
        if not argument.checkpoint and not file and argument.seed is None:
            raise ValueError(f"no weights: give {argument.spec}@CHECKPOINT, or {argument.spec}@random as a control")
        clip = load_clip(
            arch,
            argument.checkpoint or file or None,
            pool=argument.pool,
            top_k=argument.top_k,
            variant=argument.variant,
            random_seed=argument.seed,
            device=device,
            precision=args.precision,
        )
        run_once(clip, device, embed_images)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"model {argument.name!r}: {error}") from error
    return clip


def run_once(clip: "LoadedClip", device: "torch.device", read: Callable[["nn.Module", "Tensor"], Any]) -> None:
    """Read one black image, so that what does not fit shows before the work."""
    import torch

    with torch.inference_mode():
        read(clip.model, torch.zeros(1, 3, clip.preprocessing.crop, clip.preprocessing.crop, device=device))


def embed_images(model: "nn.Module", images: "Tensor") -> "Tensor":
    """[B, 3, H, W] -> [B, E], not normalised."""
    return model.encode_image(as_weights(model, images))


def as_weights(model: "nn.Module", images: "Tensor") -> "Tensor":
    """Images in the dtype of the convolution that cuts them into patches, with --precision not that of all weights."""
    return images.to(next(weight.dtype for weight in model.visual.parameters() if weight.ndim == 4))


def encode_classes(
    clip: "LoadedClip", images: "ImageNetDataset", args: argparse.Namespace
) -> tuple["Tensor", list[int], float]:
    """The text side.

    Returns:
        Embeddings [num_names, E] on the model's device, the class of each name, and the seconds that it took.

    Raises:
        ValueError, FileNotFoundError: As `find_class_names`, `read_templates` and `encode_class_names`.
    """
    import time

    from class_names import find_class_names, flatten_names

    from last_vit.clip_text import default_cache, encode_class_names, read_templates

    start = time.perf_counter()
    names, class_of_name = flatten_names(find_class_names(args.class_names, images.classes))
    cache = None if args.no_text_cache else args.text_cache or default_cache()
    text = encode_class_names(clip.model, clip.tokenizer, names, read_templates(args.templates), cache=cache)
    return text.to(next(clip.model.parameters()).device), class_of_name, time.perf_counter() - start


def open_loader(args: argparse.Namespace, images: "ImageNetDataset", clip: "LoadedClip", title: str) -> "DataLoader":
    """Batches of this process's share of the images, as the model takes them, behind a progress bar."""
    from tqdm import tqdm

    from last_vit.data.loaders import build_test_loader
    from last_vit.data.transforms import EvalTransform
    from last_vit.runtime import is_main_process

    prep = clip.preprocessing
    images.transform = EvalTransform(prep.resize, prep.crop, prep.mean, prep.std, prep.interpolation)
    loader = build_test_loader(images, args.batch_size, args.num_workers)
    return tqdm(loader, desc=title, unit="batch", disable=None if is_main_process() else True, leave=False)


def write_model_result(
    args: argparse.Namespace,
    argument: "ModelArgument",
    clip: "LoadedClip",
    metrics: Mapping[str, float],
    *,
    n_images: int,
    seconds: float,
    device: "torch.device",
    row: str | None = None,
    config: Mapping[str, Any],
) -> Path:
    """Write `results/<output>_<row>_<images>.json`, in the main process only.

    Args:
        args: With the flags of this module.
        argument: The model as it was asked for.
        clip: As it was loaded.
        metrics: Finite numbers.
        n_images: Images that the metrics are over.
        seconds: Of the loop over the images.
        device: Where it ran.
        row: Label in README's table; None is the model's name.
        config: What the numbers depend on beside model, images and prompts; stands over what is known here.
    """
    from last_vit.clip_text import TEMPLATE_SETS, read_templates
    from last_vit.results import result_name, write_result

    images, row = images_name(args), row or argument.name
    templates = read_templates(args.templates)
    prompts = f"{len(templates)} prompts" if len(templates) > 1 else f"prompt {templates[0]!r}"
    return write_result(
        result_name(f"{args.output or SUBJECT}_{row}_{images}"),
        metrics,
        n_images=n_images,
        dataset=f"{images}, {clip.preprocessing.crop} px, {prompts}",
        config={
            "model": argument.spec,
            "arch": clip.arch,
            "checkpoint": argument.checkpoint,
            "random_seed": argument.seed,
            "pooling": clip.pooling,
            "pooling_source": clip.pooling_source,
            "loading_notes": list(clip.notes),
            "precision": args.precision,
            "resize": clip.preprocessing.resize,
            "crop": clip.preprocessing.crop,
            "class_names": str(args.class_names or "imagenet"),
            "templates": args.templates if args.templates in TEMPLATE_SETS else list(templates),
            **config,
        },
        checkpoint_sha256=clip.checkpoint_sha256,
        seconds=seconds,
        device=device,
        table=SUBJECT if args.table else None,
        row=row if args.table else None,
    )


def print_table(cells: Sequence[Sequence[str]]) -> None:
    """Print lines of equally many cells in columns, the first flush left and the others flush right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]))
