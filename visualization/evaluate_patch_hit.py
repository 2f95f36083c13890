r"""Point-in-Box on ImageNet's layout: how often the best-scoring patch lies in the object's box (paper Sec. 4.1).

    python visualization/evaluate_patch_hit.py \
        --checkpoint ViT_190k.pth --imagenet-root /path/to/imagenet --batch-size 32
    torchrun --nproc-per-node 8 visualization/evaluate_patch_hit.py ...   # every image once, whatever the number

Only images with exactly one annotated object count, and by default (as in the released script) only those whose box is
smaller than a quarter of the image; `--max-box-area none` is the paper's text. Prints, and writes to results/, the
share of hits, the number of images, and what a random patch and the image's centre would score on the same images.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def build_parser() -> argparse.ArgumentParser:
    """The command line; its first seven flags are the released script's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", type=Path, help="weights; not for --model open_clip:<arch>/<file>, which names its own")
    add("--imagenet-root", type=Path, required=True, help="folder that holds val/, or val/ itself")
    add("--imagenet-label-dir", type=Path, help="folder of the XML boxes; default: found beside the images")
    add(
        "--imagenet-meta",
        type=Path,
        help="LOC_synset_mapping.txt or torchvision's meta.bin; accepted for old commands, not needed: classes are the "
        "sorted folder names",
    )
    add("--batch-size", type=_positive, default=32, help="images per process and step; default 32")
    add("--num-workers", type=int, default=4, help="loading processes; default 4")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:<index>; default auto")
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
    add(
        "--global-token",
        choices=("trained", "cls", "last", "mean"),
        default="trained",
        help="the token that patches are compared with; default trained: what the model is pooled with. The released "
        "script used cls",
    )
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
    add("--skip-broken", action="store_true", help="leave out and count images that are unreadable or have no XML")
    add("--image-size", type=_positive, help="crop in pixels; default: the model's")
    add("--resize", type=_positive, help="shorter side before the crop in pixels; default: the model's")
    add("--output", help="name of the file in results/; default patch_hit_<checkpoint>")
    add("--dataset-name", help="data set in the results; default: the name of --imagenet-root")
    add("--row", help="show the result in README's Point-in-Box table under this label; runs (seeds) may share one")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with status 2 and one line on any error that the user can mend."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        _run(args)
    except ImportError as error:  # perhaps torch itself, without which runtime.py is not to be had
        parser.exit(2, f"evaluate_patch_hit.py: error: {error}\n")
    except (ValueError, OSError) as error:
        from last_vit.runtime import error_text

        parser.exit(2, f"evaluate_patch_hit.py: error: {error_text(error)}\n")


def _run(args: argparse.Namespace) -> None:
    # imported after parsing, so that --help needs neither torch nor any host library
    from tqdm import tqdm

    from last_vit.data.imagenet import ImageNetDataset
    from last_vit.data.loaders import build_test_loader
    from last_vit.data.transforms import EvalTransform
    from last_vit.metrics import PointInBox, TopK
    from last_vit.patch_hit import count_patch_hits
    from last_vit.pooling import LaStPool
    from last_vit.runtime import describe_device, is_main_process, process_group
    from last_vit.trained_model import load_trained_model

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
        prep, pooling = trained.preprocessing, trained.pooling
        last_pool = LaStPool(
            args.top_k if args.top_k is not None else pooling.get("top_k") or 1,
            sigma=pooling.get("sigma"),
            variant=args.variant or pooling.get("variant") or "release",
        )
        dataset = ImageNetDataset(
            args.imagenet_root,
            "val",
            transform=EvalTransform(prep.resize, prep.crop, prep.mean, prep.std, prep.interpolation),
            boxes=True,
            annotation_root=args.imagenet_label_dir,
            single_object=True,
            max_box_area=args.max_box_area,
            skip_broken=args.skip_broken,
        )
        left_out = {**dataset.filtered, **dataset.skipped}
        loader = build_test_loader(dataset, args.batch_size, args.num_workers)
        start = time.perf_counter()
        point_in_box = PointInBox(prep.crop, prep.resize, args.hit_rule)
        # a CLIP's output is an embedding, and other label sets have other numbers of classes
        has_accuracy = not args.model.startswith("open_clip:") and trained.num_classes == len(dataset.classes)
        top_k = TopK() if has_accuracy else None
        progress = tqdm(loader, unit="batch", disable=None if is_main_process() else True)
        model = trained.model.to(device)
        count_patch_hits(model, progress, device, point_in_box, top_k, args.global_token, last_pool)
        metrics = {**(top_k.compute() if top_k else {}), **point_in_box.compute()}
        seconds = time.perf_counter() - start
        if metrics["num_images"] != len(dataset):
            raise ValueError(
                f"counted {metrics['num_images']} of {len(dataset)} images; the loader lost or repeated some"
            )
        if not is_main_process():
            return
        area = "any box" if args.max_box_area is None else f"box < {100 * args.max_box_area:g} %"
        token = args.global_token + (f" K={last_pool.top_k} {last_pool.variant}" if is_extra_token else "")
        protocol = f"{area}, {args.hit_rule} rule, {token} token"
        path = _write(args, trained, left_out, protocol, metrics, seconds, device)
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        known = ", ".join(f"{key}={value}" for key, value in pooling.items() if value is not None)
        rows = {
            "model": f"{args.model}, weights {trained.checkpoint_sha256}",
            "pooling": f"{known} ({trained.pooling_source})",
            "protocol": protocol,
            "images": f"{metrics['num_images']}; left out: {reasons or 'none'}",
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
    trained: Any,
    left_out: dict[str, int],
    protocol: str,
    metrics: Mapping[str, float],
    seconds: float,
    device: Any,
) -> Path:
    """The results record of this run."""
    from last_vit.results import dataset_name, result_name, write_result

    prep = trained.preprocessing
    name = args.dataset_name or dataset_name(args.imagenet_root, "val")
    weights = Path(args.model if args.checkpoint is None else args.checkpoint).stem
    return write_result(
        result_name(args.output or f"patch_hit_{weights}"),
        {key: value for key, value in metrics.items() if key != "num_images"},
        n_images=metrics["num_images"],
        dataset=f"{name} val, {prep.crop} px, {protocol}",
        config={
            "model": args.model,
            "opts": args.opts,
            "pooling": trained.pooling,
            "pooling_source": trained.pooling_source,
            "global_token": args.global_token,
            "hit_rule": args.hit_rule,
            "max_box_area": args.max_box_area,
            "resize": prep.resize,
            "crop": prep.crop,
            "batch_size": args.batch_size,
            "left_out": left_out,
        },
        checkpoint_sha256=trained.checkpoint_sha256,
        seconds=seconds,
        device=device,
        table=None if args.row is None else "point_in_box",
        row=args.row,
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def _top_k(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _max_box_area(text: str) -> float | None:
    if text == "none":
        return None
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be a share of the image in (0, 1], or none; got {text}")
    return value


if __name__ == "__main__":
    main()
