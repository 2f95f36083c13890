r"""Point-in-Box on ImageNet's layout: how often the best-scoring patch lies in the object's box (paper Sec. 4.1).

    python visualization/evaluate_patch_hit.py \
        --checkpoint ViT_190k.pth --imagenet-root /path/to/imagenet --batch-size 32
    torchrun --nproc-per-node 8 visualization/evaluate_patch_hit.py ...   # every image once, whatever the number

Only images with exactly one annotated object count, and by default (as in the released script) only those whose box is
smaller than a quarter of the image; `--max-box-area none` is the paper's text. Prints, and writes to results/, the
share of hits, the number of images, and what a random patch and the image's centre would score on the same images.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diagnostic_cli import add_imagenet_flags, add_loading_flags
from point_in_box_protocol import (
    add_protocol_flags,
    left_out_words,
    measure_hits,
    open_imagenet,
    protocol_config,
    protocol_words,
)

from last_vit.command_line import command_parser, positive, run_command_line

if TYPE_CHECKING:
    import torch
    from point_in_box_protocol import BoxedImages

    from last_vit.models import TrainedModel


def build_parser() -> argparse.ArgumentParser:
    """The command line; its flags for checkpoint, ImageNet, batches and device are the released script's."""
    parser = command_parser("evaluate_patch_hit.py", __doc__)
    add = parser.add_argument
    add("--checkpoint", type=Path, help="weights; not for --model open_clip:<arch>/<file>, which names its own")
    add_imagenet_flags(parser)
    add(
        "--imagenet-meta",
        type=Path,
        help="LOC_synset_mapping.txt or torchvision's meta.bin; accepted for old commands, not needed: classes are the "
        "sorted folder names",
    )
    add_loading_flags(parser)
    add(
        "--model",
        default="torchvision:vit_b_16",
        help="torchvision:<name>, timm:<name>, open_clip:<arch>[/<file>] or <config>.py; default torchvision:vit_b_16",
    )
    add("--opts", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for a <config>.py")
    add(
        "--pool",
        choices=("cls", "mean", "max", "attention", "last"),
        help="pooling; default: what the checkpoint records (the release's files record none: last, K = 1)",
    )
    add("--top-k", type=_top_k, help="patches per channel for pool or token last: a number, or a share")
    add("--variant", choices=("release", "paper"), help="stability score for pool or token last")
    add_protocol_flags(parser)
    add("--skip-broken", action="store_true", help="leave out and count images that are unreadable or have no XML")
    add("--image-size", type=positive, help="crop in pixels; default: the model's")
    add("--resize", type=positive, help="shorter side before the crop in pixels; default: the model's")
    add("--output", help="name of the file in results/; default patch_hit_<checkpoint>")
    add("--dataset-name", help="data set in the results; default: the name of --imagenet-root")
    add("--row", help="show the result in README's Point-in-Box table under this label; runs (seeds) may share one")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with status 2 and one line on any error that the user can mend."""
    run_command_line(build_parser(), _run, argv)


def _run(args: argparse.Namespace) -> None:
    # imported after parsing, so that --help needs neither torch nor any host library
    from last_vit.models import load_trained_model
    from last_vit.runtime import describe_device, is_main_process, process_group

    if args.imagenet_meta is not None and not args.imagenet_meta.is_file():
        raise FileNotFoundError(f"no file at --imagenet-meta {args.imagenet_meta}; it is not needed, leave it out")
    # --top-k and --variant shape the token that is asked for: the model's pooling, or the extra token of
    # --global-token last on a model that is pooled in its own way
    is_extra_token = args.global_token == "last" and args.pool != "last"  # noqa: S105
    with process_group(args.device) as device:
        trained = load_trained_model(
            args.model,
            args.checkpoint,
            opts=args.opts,
            image_size=args.image_size,
            resize=args.resize,
            pool=args.pool,
            top_k=None if is_extra_token else args.top_k,
            variant=None if is_extra_token else args.variant,
        )
        last_pool = trained.selection(args.top_k, args.variant)
        images = open_imagenet(args)
        metrics, seconds = measure_hits(args, "Point-in-Box", args.model, trained, last_pool, images, device)
        if not is_main_process():
            return
        protocol = protocol_words(args, last_pool if is_extra_token else None)
        path = _write(args, trained, images, protocol, metrics, seconds, device)
        known = ", ".join(f"{key}={value}" for key, value in trained.pooling.items() if value is not None)
        rows = {
            "model": f"{args.model}, weights {trained.checkpoint_sha256}",
            "pooling": f"{known} ({trained.pooling_source})",
            "protocol": protocol,
            "images": f"{metrics['num_images']}; left out: {left_out_words(images)}",
            "Point-in-Box": f"{metrics['point_in_box']:.2f} %",
            "  random patch": f"{metrics['point_in_box_random']:.2f} %",
            "  image centre": f"{metrics['point_in_box_center']:.2f} %",
        }
        if "acc1" in metrics:
            rows["top-1 / top-5"] = f"{metrics['acc1']:.2f} / {metrics['acc5']:.2f} % of these images"
        rows["time"] = f"{seconds:.1f} s, {metrics['num_images'] / seconds:.1f} images/s, {describe_device(device)}"
        rows["written"] = str(path)
        print("\n".join(f"{label:<16}{value}" for label, value in rows.items()))


def _write(
    args: argparse.Namespace,
    trained: "TrainedModel",
    images: "BoxedImages",
    protocol: str,
    metrics: Mapping[str, float],
    seconds: float,
    device: "torch.device",
) -> Path:
    """The results record of this run."""
    from last_vit.results import result_name, write_result

    prep = trained.preprocessing
    weights = Path(args.model if args.checkpoint is None else args.checkpoint).stem
    return write_result(
        result_name(args.output or f"patch_hit_{weights}"),
        {key: value for key, value in metrics.items() if key != "num_images"},
        n_images=metrics["num_images"],
        dataset=f"{images.name}, {prep.crop} px, {protocol}",
        config={
            "model": args.model,
            "opts": args.opts,
            "pooling": trained.pooling,
            "pooling_source": trained.pooling_source,
            "resize": prep.resize,
            "crop": prep.crop,
            **protocol_config(args, images),
        },
        checkpoint_sha256=trained.checkpoint_sha256,
        seconds=seconds,
        device=device,
        table=None if args.row is None else "point_in_box",
        row=args.row,
    )


def _top_k(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


if __name__ == "__main__":
    main()
