r"""Zero-shot accuracy over K and pooling (paper table 8): checkpoints as trained, and each read in other ways.

    python clip/top_k_table.py --imagenet-root /path/to/imagenet --table \
        --model "OpenCLIP ViT-B/16, CLS=open_clip:ViT-B-16@cls.pt" \
        --model "OpenCLIP ViT-B/16, LaSt K=98=open_clip:ViT-B-16@k98.pt" ...           # table 8: a checkpoint per K
    python clip/top_k_table.py --imagenet-root ... --model A=open_clip:ViT-B-16@k98.pt \
        --pool cls mean max attention last --top-k 1 49 0.5 1.0 --point-in-box         # one checkpoint, many read-outs

The paper trains a model per row; its rows are what `--model` alone gives. `--pool` adds rows that read the same weights
in another way than they were trained for: an ablation of the read-out, not of training. All rows of a model share one
forward pass per image. `--point-in-box` adds how often the patch most similar to the row's token lies in the object's
box, over the images with one small object. Segmentation reads patches, not the pooled token, so `--segmentation` adds
one mIoU per checkpoint and data set, measured and recorded as by eval_zero_shot_seg.py, whose flags may follow:

    --segmentation voc20=VOCdevkit/VOC2012 --segmentation "coco_object=coco --protocol naclip --pamr off"
"""

import argparse
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from zero_shot_cli import (
    add_image_flags,
    add_loading_flags,
    add_model_flags,
    add_output_flags,
    images_name,
    load_clip_argument,
    open_class_images,
    print_table,
    run_once,
    write_model_result,
)

from last_vit.command_line import command_parser, patch_count, run_command_line

if TYPE_CHECKING:
    import torch

    from last_vit.clip_models import LoadedClip
    from last_vit.data.imagenet import ImageNetDataset
    from last_vit.models import ModelArgument

POOLINGS = ("cls", "mean", "max", "attention", "last")
_COLUMNS = {
    "acc1": "top-1",
    "acc5": "top-5",
    "point_in_box": "PiB",
    "point_in_box_random": "random patch",
    "point_in_box_center": "image centre",
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("top_k_table.py", __doc__)
    add_model_flags(parser)
    add = parser.add_argument_group("read-outs").add_argument
    add("--pool", nargs="+", choices=POOLINGS, default=[], help="also read every model with these; default: none")
    add(
        "--top-k",
        type=patch_count,
        nargs="+",
        default=[1, 0.25, 0.5, 1.0],
        help="of --pool last: numbers of patches, or shares of them; default 1 0.25 0.5 1.0",
    )
    add("--point-in-box", action="store_true", help="also Point-in-Box; needs ImageNet's XML boxes")
    add(
        "--max-box-area",
        type=float,
        default=0.25,
        help="largest share of an image that a box may take to count; default 0.25 (the released script's)",
    )
    add(
        "--segmentation",
        action="append",
        default=[],
        metavar="'DATASET=ROOT [FLAGS]'",
        help="also zero-shot mIoU; FLAGS of eval_zero_shot_seg.py; once per data set",
    )
    add_image_flags(parser)
    add_loading_flags(parser)
    add_output_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with status 2 and one line on any error that the user can mend."""
    run_command_line(build_parser(), _run, argv)


def _run(args: argparse.Namespace) -> None:
    from last_vit.models import parse_model_arguments
    from last_vit.runtime import is_main_process, process_group

    arguments = parse_model_arguments(args.model)
    if not 0 < args.max_box_area <= 1:
        raise ValueError(f"--max-box-area is a share of the image in (0, 1], got {args.max_box_area}")
    if args.point_in_box and args.imagenet_root is None:
        raise ValueError("--point-in-box needs ImageNet's boxes: give --imagenet-root in place of --images")
    segmentation = [segmentation_flags(text, args) for text in args.segmentation]
    with process_group(args.device) as device:
        images = open_class_images(args, boxes=args.point_in_box)
        rows = [row for argument in arguments for row in measure_model(argument, args, images, segmentation, device)]
        if not is_main_process():
            return
        keys = list(dict.fromkeys(key for *_, metrics in rows for key in metrics if key != "num_boxes"))
        titles = [_COLUMNS.get(key, key) for key in keys]
        print_table(
            [["model", "read-out", *titles]]
            + [
                [name, label, *(f"{metrics[key]:.2f}" if key in metrics else "-" for key in keys)]
                for name, label, metrics in rows
            ]
        )
        boxes = f", {rows[0][2]['num_boxes']} with one small box" if args.point_in_box else ""
        print(f"{images_name(args)}: {len(images)} images{boxes}, {len(images.classes)} classes; percent")


def measure_model(
    argument: "ModelArgument",
    args: argparse.Namespace,
    images: "ImageNetDataset",
    segmentation: Sequence[argparse.Namespace],
    device: "torch.device",
) -> list[tuple[str, str, dict[str, float]]]:
    """All read-outs of one model in one pass over the images, and their records.

    Args:
        argument: The model as it was asked for.
        args: Parsed.
        images: To classify.
        segmentation: From `segmentation_flags`, per data set.
        device: Where to compute.

    Returns:
        Model, read-out in words ("as trained: ..." first) and metrics of each row.

    Raises:
        ValueError, FileNotFoundError: As `load_clip_argument`, `encode_classes` and eval_zero_shot_seg.py; a K above
            the number of patches.
    """
    from read_out_pass import list_pools, measure_read_outs, read_images
    from read_outs import attach_read_outs

    from last_vit.runtime import is_main_process

    clip = load_clip_argument(argument, args, device)
    mious = {}
    for flags in segmentation:
        mious |= measure_segmentation(argument, flags, clip, device)
    try:
        pools = list_pools(clip.model, args.pool, args.top_k)
        attach_read_outs(clip.model, pools)
        run_once(clip, device, read_images)
    except ValueError as error:
        raise ValueError(f"model {argument.name!r}: {error}") from error
    found, seconds = measure_read_outs(argument, args, images, clip, len(pools), device)
    rows = []
    for number, (pool, metrics) in enumerate(zip(pools, found, strict=True)):
        words = pool.kind if pool.top_k is None else f"{pool.kind} K={pool.top_k}"
        num_images = metrics.pop("num_images")
        if is_main_process():
            write_model_result(
                args,
                argument,
                clip,
                metrics,
                n_images=num_images,
                seconds=seconds,
                device=device,
                row=f"{argument.name}, read with {words}" if number else None,
                config={
                    "num_classes": len(images.classes),
                    "read_out": {"pool": pool.kind, "top_k": pool.top_k, "sigma": pool.sigma, "variant": pool.variant},
                    "read_outs_of_the_pass": len(pools),
                    "max_box_area": args.max_box_area if args.point_in_box else None,
                },
            )
        rows.append((argument.name, words if number else f"as trained: {words}", {**metrics, **mious}))
    return rows


def segmentation_flags(text: str, args: argparse.Namespace) -> argparse.Namespace:
    """The command line of eval_zero_shot_seg.py that `DATASET=ROOT [FLAGS]` stands for.

    Args:
        text: One value of --segmentation.
        args: The flags that both scripts have.

    Raises:
        ValueError: Another form, or flags that this table decides. What else FLAGS hold, that script's parser says.
    """
    import eval_zero_shot_seg

    words = shlex.split(text)
    dataset, _, root = words[0].partition("=") if words else ("", "", "")
    if not dataset or not root:
        raise ValueError(f"--segmentation takes 'DATASET=ROOT [FLAGS]', such as voc20=VOC2012, got {text!r}")
    shared = ["--precision", args.precision, "--num-workers", str(args.num_workers), "--device", args.device]
    shared += ["--text-cache", str(args.text_cache)] if args.text_cache else []
    shared += [flag for flag in ("--no-text-cache", "--table") if getattr(args, flag[2:].replace("-", "_"))]
    own = ["--dataset", dataset, "--root", root, "--model", args.model[0]]
    flags = eval_zero_shot_seg.build_parser().parse_args([*own, *shared, *words[1:]])
    if len(flags.model) > 1 or (flags.precision, flags.device) != (args.precision, args.device) or flags.overlays:
        raise ValueError(
            f"--segmentation {text!r}: --model, --precision and --device are the table's own, and --overlays draws "
            f"nothing here; leave them out"
        )
    return flags


def measure_segmentation(
    argument: "ModelArgument", flags: argparse.Namespace, clip: "LoadedClip", device: "torch.device"
) -> dict[str, float]:
    """One mIoU, recorded as by eval_zero_shot_seg.py: {"mIoU <data set>": percent}.

    Raises:
        ValueError, FileNotFoundError: As that script.
    """
    import eval_zero_shot_seg
    from seg_output import write_record

    from last_vit.runtime import is_main_process

    setting = eval_zero_shot_seg.choose_setting(flags)
    images = eval_zero_shot_seg.open_images(flags, setting)
    segmenter = eval_zero_shot_seg.build_segmenter(flags, setting, clip, device)
    result, seconds = eval_zero_shot_seg.evaluate(flags, setting, images, segmenter, argument.name)
    if is_main_process():
        write_record(flags, argument, setting, clip, images, result, seconds, device)
    return {f"mIoU {setting.name}": result["miou"]}


if __name__ == "__main__":
    main()
