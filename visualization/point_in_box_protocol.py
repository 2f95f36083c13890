"""What every Point-in-Box number depends on, in one place: flags, images, loop, and the protocol in words.

Shared by evaluate_patch_hit.py (one model, the release's command) and point_in_box_table.py (many models), so that
their records can stand in one table. Writes and prints nothing.
"""

import argparse
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diagnostic_cli import eval_transform, image_set_name, open_images, open_loader
from token_cli import add_token_flag

if TYPE_CHECKING:
    import torch
    from torch.utils.data import Dataset

    from last_vit.metrics.patch_norms import PatchNorms
    from last_vit.models import TrainedModel
    from last_vit.pooling import LaStPool
    from last_vit.preprocessing import Preprocessing


@dataclass(frozen=True)
class BoxedImages:
    """Images that show one object each.

    Attributes:
        dataset: Samples with "image", "box_xyxy" and "image_hw", and "label" when there are classes.
        name: What records call them.
        num_classes: Of the labels; None without labels.
        left_out: Images that do not count, reason -> count.
        annotated: The data set behind `dataset`, whose attribute `transform` makes "image".
    """

    dataset: "Dataset"
    name: str
    num_classes: int | None
    left_out: dict[str, int]
    annotated: Any

    def prepare_for(self, preprocessing: "Preprocessing") -> None:
        """Give the images to a model as it takes them; the annotations are not read again."""
        self.annotated.transform = eval_transform(preprocessing)


def add_protocol_flags(parser: argparse.ArgumentParser) -> None:
    """The three choices that the paper leaves open."""
    add = parser.add_argument
    add_token_flag(parser)
    add(
        "--hit-rule",
        choices=("release", "center"),
        default="release",
        help="which patches lie in a box; default release",
    )
    add(
        "--max-box-area",
        type=_max_box_area,
        default=0.25,
        help="leave out images whose box covers this share or more; none = the paper; default 0.25, as released",
    )


def open_imagenet(args: argparse.Namespace) -> BoxedImages:
    """The single-object images of ImageNet's layout.

    Args:
        args: With the flags of `add_imagenet_flags` and `add_protocol_flags`, `dataset_name` and `skip_broken`.

    Raises:
        ValueError, FileNotFoundError: As `ImageNetDataset`.
    """
    from last_vit.data.imagenet import ImageNetDataset
    from last_vit.results import dataset_name

    dataset = ImageNetDataset(
        args.imagenet_root,
        "val",
        boxes=True,
        annotation_root=args.imagenet_label_dir,
        single_object=True,
        max_box_area=args.max_box_area,
        skip_broken=args.skip_broken,
    )
    name = f"{args.dataset_name or dataset_name(args.imagenet_root, 'val')} val"
    return BoxedImages(dataset, name, len(dataset.classes), {**dataset.filtered, **dataset.skipped}, dataset)


def open_folder(args: argparse.Namespace) -> BoxedImages:
    """The single-object images of any folder with boxes.

    Args:
        args: With the flags of `add_image_flags` and `add_protocol_flags`.

    Raises:
        ValueError, FileNotFoundError: As `ForegroundImages`; no boxes, or no image with exactly one small enough box.
    """
    from torch.utils.data import Subset

    from last_vit.preprocessing import Preprocessing

    images = open_images(args, Preprocessing())
    kept, left_out = images.single_objects(args.max_box_area)
    if not kept:
        raise ValueError(
            f"no image of {args.images} has exactly one object, with a box below --max-box-area: {dict(left_out)}"
        )
    return BoxedImages(Subset(images, kept), image_set_name(args), None, {**left_out, **images.skipped}, images)


def measure_hits(
    args: argparse.Namespace,
    title: str,
    spec: str,
    trained: "TrainedModel",
    last_pool: "LaStPool",
    images: BoxedImages,
    device: "torch.device",
    patch_norms: "PatchNorms | None" = None,
) -> tuple[dict[str, float], float]:
    """One pass of a model over the images, every image once over all processes.

    Args:
        args: With the flags of `add_protocol_flags` and `add_loading_flags`.
        title: Of the progress bar.
        spec: As in `build_model`.
        trained: Its model is moved to `device`.
        last_pool: For `--global-token last`.
        images: Are given the model's preprocessing.
        device: Where to compute.
        patch_norms: Updated in the same pass, if given.

    Returns:
        What `PointInBox.compute` and, where the labels are those of the model's head, `TopK.compute` give; seconds.

    Raises:
        ValueError: As `count_patch_hits` and the metrics; a loader that lost or repeated images.
    """
    from last_vit.metrics import PointInBox, TopK
    from last_vit.patch_hit import count_patch_hits

    prep = trained.preprocessing
    images.prepare_for(prep)
    point_in_box = PointInBox(prep.crop, prep.resize, args.hit_rule)
    # a CLIP's output is an embedding, and other label sets have other numbers of classes
    has_accuracy = images.num_classes is not None and trained.num_classes == images.num_classes
    top_k = TopK() if has_accuracy and not spec.startswith("open_clip:") else None
    model, loader = trained.model.to(device), open_loader(args, images.dataset, title)
    start = time.perf_counter()
    count_patch_hits(model, loader, device, point_in_box, top_k, args.global_token, last_pool, patch_norms)
    metrics = {**(top_k.compute() if top_k else {}), **point_in_box.compute()}
    seconds = time.perf_counter() - start
    if metrics["num_images"] != len(images.dataset):
        raise ValueError(
            f"counted {metrics['num_images']} of {len(images.dataset)} images; the loader lost or repeated some"
        )
    return metrics, seconds


def protocol_words(args: argparse.Namespace, extra_token: "LaStPool | None") -> str:
    """The protocol as records and tables name it.

    Args:
        args: With the flags of `add_protocol_flags`.
        extra_token: The selection behind `--global-token last` for a model that is not pooled with it.

    Returns:
        Such as "box < 25 %, release rule, trained token".
    """
    area = "any box" if args.max_box_area is None else f"box < {100 * args.max_box_area:g} %"
    token = args.global_token + (f" K={extra_token.top_k} {extra_token.variant}" if extra_token is not None else "")
    return f"{area}, {args.hit_rule} rule, {token} token"


def protocol_config(args: argparse.Namespace, images: BoxedImages) -> dict[str, Any]:
    """The protocol as entries of a record's config."""
    return {
        "global_token": args.global_token,
        "hit_rule": args.hit_rule,
        "max_box_area": args.max_box_area,
        "batch_size": args.batch_size,
        "left_out": images.left_out,
    }


def left_out_words(images: BoxedImages) -> str:
    """The images that do not count, in words."""
    return ", ".join(f"{count} {reason}" for reason, count in images.left_out.items()) or "none"


def _max_box_area(text: str) -> float | None:
    if text == "none":
        return None
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be a share of the image in (0, 1], or none; got {text}")
    return value
