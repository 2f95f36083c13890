r"""Coarse segmentation of VOC 2012 by what a frozen model gives for its patches (paper Tab. 6, Sec. 8.3).

    python dino/eval_coarse_segmentation.py --voc-root VOCdevkit/VOC2012 \
        --model "DINO LaSt=dino:vit_small/16@output/dino/checkpoint.pth" --rule score attention

Rules, each making one or more binary maps of an image:

- score: patches whose score (cosine to the global token) exceeds the image's mean: the paper's rule.
- attention: per head, the patches that hold 60 % of the class token's attention in the last layer: DINO's rule.

Ground truth (see dino/coarse_seg.py): --protocol union, class or object. The paper does not say which, nor
at what size, so every record names them. Images are resized to the model's square input, aspect ignored, so that no
part of them is cut away; maps are brought back to the annotation's size by the nearest patch, and compared pixel by
pixel. Void pixels do not count.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from last_vit.command_line import MODEL_HELP, command_parser, positive, run_command_line

if TYPE_CHECKING:
    import torch
    from coarse_seg import CoarseSegmentation
    from segmentation_images import SegmentationImages
    from torch import Tensor, nn

    from last_vit.models import ModelArgument, TrainedModel

RULES, PROTOCOLS = ("score", "attention"), ("union", "class", "object")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("eval_coarse_segmentation.py", __doc__)
    add = parser.add_argument
    add("--model", action="append", required=True, metavar="MODEL", help=MODEL_HELP)
    add("--voc-root", type=Path, required=True, help="VOCdevkit/VOC2012 or a folder in that layout")
    add("--voc-split", default="val", help="list in ImageSets/Segmentation; default val (1,449 images)")
    add("--rule", nargs="+", choices=RULES, default=["score"], help="default score, the paper's")
    add("--protocol", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS), help="ground truth; default: all three")
    add("--mass", type=float, default=0.6, help="rule attention: share of the attention that is kept; default 0.6")
    add(
        "--global-token",
        choices=("trained", "cls", "last", "mean"),
        default="trained",
        help="rule score: the token that patches are compared with; default trained: what the model is pooled with",
    )
    add("--image-size", type=positive, help="side of the input in pixels; default: each model's")
    add("--batch-size", type=positive, default=16, help="images per process and step; default 16")
    add("--num-workers", type=int, default=4, help="loading processes; default 4")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:<index>; default auto")
    add("--dataset-name", help='in the results, such as "VOC12"; default: the name of --voc-root')
    add("--output", default="coarse_seg", help="beginning of the names of the files in results/; default coarse_seg")
    add("--table", action="store_true", help='show the results in README\'s table, in rows "<model>, <rule>"')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with status 2 and one line on any error that the user can mend."""
    run_command_line(build_parser(), _run, argv)


def _run(args: argparse.Namespace) -> None:
    from segmentation_images import SegmentationImages

    from last_vit.data.voc import VocSplit
    from last_vit.models import parse_model_arguments
    from last_vit.runtime import describe_device, is_main_process, process_group

    arguments = parse_model_arguments(args.model)
    with process_group(args.device) as device:
        split = VocSplit(args.voc_root, args.voc_split, "Segmentation")
        for argument in arguments:
            trained = argument.load(image_size=args.image_size)
            prep = trained.preprocessing
            images = SegmentationImages(split, prep.crop, prep.mean, prep.std, prep.interpolation)
            start = time.perf_counter()
            found = evaluate(args, trained, images, device)
            results = {key: metric.compute() for key, metric in found.items()}
            seconds = time.perf_counter() - start
            if is_main_process():
                speed = f"{len(images) / seconds:.1f} images/s, {describe_device(device)}"
                print(f"\n{argument.name}: {len(images)} images, {prep.crop} px, {speed}")
                print(f"{'rule':12}{'ground truth':14}{'mIoU':>8}{'images':>8}{'regions':>9}{'without':>9}")
                for (rule, protocol), result in results.items():
                    counts = f"{result['num_images']:8}{result['num_regions']:9}{result['num_empty']:9}"
                    print(f"{rule:12}{protocol:14}{result['miou']:8.2f}{counts}")
                    _write(args, argument, trained, rule, protocol, result, seconds, device)


def evaluate(
    args: argparse.Namespace, trained: "TrainedModel", images: "SegmentationImages", device: "torch.device"
) -> "dict[tuple[str, str], CoarseSegmentation]":
    """Run one model over this process's share of the images.

    Returns:
        (rule, protocol) -> the metric.

    Raises:
        ValueError: As `last_attention` and `choose_global_token`; a mass outside (0, 1].
    """
    import torch
    from coarse_seg import CoarseSegmentation
    from tqdm import tqdm

    from last_vit.data.loaders import build_test_loader
    from last_vit.runtime import is_main_process

    model = trained.model.to(device)
    make_maps = {rule: _map_maker(rule, args, trained) for rule in args.rule}
    metrics = {(rule, protocol): CoarseSegmentation(protocol) for rule in args.rule for protocol in args.protocol}
    loader = build_test_loader(images, args.batch_size, args.num_workers)
    for batch in tqdm(loader, unit="batch", disable=None if is_main_process() else True, leave=False):
        with torch.inference_mode():
            maps = {rule: make(model, batch["image"].to(device)) for rule, make in make_maps.items()}
        for position, index in enumerate(batch["index"].tolist()):
            class_mask, object_mask = images.masks(index)
            for (rule, _), metric in metrics.items():
                resized = upsample_nearest(maps[rule][position], tuple(class_mask.shape))
                metric.update(resized, class_mask, object_mask)
    return metrics


def upsample_nearest(maps: "Tensor", image_hw: tuple[int, int]) -> "Tensor":
    """Bool [M, h, w] maps at an image's own size, each pixel taking the patch it lies in: bool [M, H, W], on CPU."""
    from torch.nn import functional as F

    return F.interpolate(maps[None].float(), size=image_hw, mode="nearest-exact")[0].bool().cpu()


def _map_maker(rule: str, args: argparse.Namespace, trained: "TrainedModel") -> "Callable[[nn.Module, Tensor], Tensor]":
    """A function from a model and images [B, 3, S, S] to maps, bool [B, M, h, w]."""
    from last_attention import last_attention
    from object_discovery import attention_mask

    from last_vit.dense import dense_forward
    from last_vit.patch_hit import choose_global_token
    from last_vit.patch_scores import patch_score, threshold_mask

    def by_score(model: "nn.Module", images: "Tensor") -> "Tensor":
        output = dense_forward(model, images)
        token = choose_global_token(output, args.global_token, trained.selection())
        mask = threshold_mask(patch_score(output.patch_tokens, token), num_std=0.0)
        return mask.unflatten(1, output.grid_hw)[:, None]

    def by_attention(model: "nn.Module", images: "Tensor") -> "Tensor":
        found = last_attention(model, images)
        if found.cls_attention is None:
            raise ValueError("this model has no class token, so rule attention has nothing to read; use --rule score")
        return attention_mask(found.cls_attention, args.mass).unflatten(2, found.output.grid_hw)

    return by_score if rule == "score" else by_attention


def _write(
    args: argparse.Namespace,
    argument: "ModelArgument",
    trained: "TrainedModel",
    rule: str,
    protocol: str,
    result: dict[str, float],
    seconds: float,
    device: "torch.device",
) -> None:
    """One record per rule and protocol."""
    from last_vit.results import result_name, write_result

    metrics = dict(result)
    name = args.dataset_name or args.voc_root.resolve().name
    detail = f"attention mass {args.mass:g}, best head" if rule == "attention" else f"{args.global_token} token"
    write_result(
        result_name(f"{args.output}_{argument.name}_{rule}_{protocol}_{name}"),
        {"miou": metrics.pop("miou")},
        n_images=metrics.pop("num_images"),
        dataset=f"{name} {args.voc_split}, {trained.preprocessing.crop} px, {protocol}, {detail}",
        config={
            "model": argument.spec,
            "checkpoint": argument.checkpoint,
            "random_seed": argument.seed,
            "pooling": trained.pooling,
            "rule": rule,
            "protocol": protocol,
            **metrics,
        },
        checkpoint_sha256=trained.checkpoint_sha256,
        seconds=seconds,
        device=device,
        table="coarse_seg" if args.table else None,
        row=f"{argument.name}, {rule}" if args.table else None,
    )


if __name__ == "__main__":
    main()
