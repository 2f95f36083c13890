"""The command line of main_dino.py: DINO's 31 flags with their defaults and spellings, and ours.

Booleans are written as in DINO: on, true or 1, and off, false or 0. Imports no torch, so that --help needs none.
"""

import argparse
from collections.abc import Sequence

from last_vit.command_line import patch_count

OPTIMIZERS = ("adamw", "sgd", "lars")
POOLINGS = ("cls", "mean", "last")


def boolean(text: str) -> bool:
    """DINO's spelling of a boolean.

    Raises:
        argparse.ArgumentTypeError: Any other text.
    """
    if text.lower() in ("on", "true", "1"):
        return True
    if text.lower() in ("off", "false", "0"):
        return False
    raise argparse.ArgumentTypeError(f"must be on, true, 1, off, false or 0, got {text!r}")


def build_parser(description: str) -> argparse.ArgumentParser:
    """The parser of main_dino.py, and the base of run_with_submitit.py's."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    _add_model_flags(parser.add_argument_group("model"))
    _add_optimization_flags(parser.add_argument_group("optimisation"))
    _add_crop_flags(parser.add_argument_group("crops"))
    _add_run_flags(parser.add_argument_group("run"))
    _add_our_flags(parser.add_argument_group("not in DINO"))
    return parser


def check_options(args: argparse.Namespace) -> None:
    """Refuse values that would fail, or quietly do something else, later.

    Raises:
        ValueError: Names the flag, its value and what is allowed.
    """
    positive = (
        "patch_size", "out_dim", "batch_size_per_gpu", "epochs", "teacher_temp", "warmup_teacher_temp",
        "global_crop_size", "local_crop_size", "accumulation_steps",
    )  # fmt: skip
    not_negative = (
        "warmup_teacher_temp_epochs", "weight_decay", "weight_decay_end", "clip_grad", "freeze_last_layer", "lr",
        "warmup_epochs", "min_lr", "local_crops_number", "saveckp_freq", "num_workers", "seed",
    )  # fmt: skip
    for name in positive:
        if getattr(args, name) <= 0:
            raise ValueError(f"--{name} must be positive, got {getattr(args, name)}")
    for name in not_negative:
        if getattr(args, name) < 0:
            raise ValueError(f"--{name} must not be negative, got {getattr(args, name)}")
    for name in ("warmup_epochs", "warmup_teacher_temp_epochs"):
        if getattr(args, name) > args.epochs:
            raise ValueError(f"--{name} is {getattr(args, name)} and --epochs {args.epochs}: a warm-up is part of them")
    for name in ("momentum_teacher", "drop_path_rate"):
        if not 0 <= getattr(args, name) <= 1:
            raise ValueError(f"--{name} must be in [0, 1], got {getattr(args, name)}")
    for name in ("global_crops_scale", "local_crops_scale"):
        low, high = getattr(args, name)
        if not 0 < low <= high <= 1:
            raise ValueError(f"--{name} must be two shares of the area, 0 < min <= max <= 1, got {low} {high}")
    if args.accumulation_steps > args.batch_size_per_gpu:
        raise ValueError(
            f"--accumulation_steps {args.accumulation_steps} cannot split --batch_size_per_gpu "
            f"{args.batch_size_per_gpu} images"
        )
    if (args.pooling == "last") != (args.top_k is not None):
        raise ValueError(
            f"--pooling last and --top_k belong together, got --pooling {args.pooling} and --top_k {args.top_k}; a "
            f"share of the patches, such as --top_k 0.25, fits crops of every size"
        )
    _check_crops(args)


def crop_sizes(args: argparse.Namespace) -> tuple[int, ...]:
    """Sides in pixels of the crops that a training sees, the global one first."""
    return (args.global_crop_size, args.local_crop_size) if args.local_crops_number else (args.global_crop_size,)


def _check_crops(args: argparse.Namespace) -> None:
    if not args.arch.startswith(("vit", "deit")):
        return
    for name, size in zip(("global_crop_size", "local_crop_size"), crop_sizes(args), strict=False):
        if size % args.patch_size:
            raise ValueError(
                f"--{name} must be a multiple of --patch_size {args.patch_size}, got {size} pixels"
                + (": the crop is smaller than a patch" if size < args.patch_size else "")
            )


def _add_model_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--arch",
        default="vit_small",
        help="vit_tiny, vit_small, vit_base (or deit_*), xcit_*, or a torchvision ResNet or kin; also vit_mini, a "
        "third of vit_tiny for small images; default vit_small",
    )
    add("--patch_size", type=int, default=16, help="side of a ViT's patches in pixels; default 16")
    add("--out_dim", type=int, default=65536, help="outputs of the head; default 65536")
    add(
        "--norm_last_layer",
        type=boolean,
        default=True,
        help="keep the last layer's weights normalised; off can be better for a ViT-S, on is safer; default true",
    )
    add("--momentum_teacher", type=float, default=0.996, help="of the EMA, cosine to 1; default 0.996")
    add("--use_bn_in_head", type=boolean, default=False, help="batch norm in the head; default false")
    add("--warmup_teacher_temp", type=float, default=0.04, help="teacher's temperature at the start; default 0.04")
    add("--teacher_temp", type=float, default=0.04, help="teacher's temperature after its warm-up; default 0.04")
    add("--warmup_teacher_temp_epochs", type=int, default=0, help="length of that warm-up; default 0")


def _add_optimization_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--use_fp16", type=boolean, default=True, help="float16 on a GPU; a CPU trains in float32; default true")
    add("--weight_decay", type=float, default=0.04, help="at the start; default 0.04")
    add("--weight_decay_end", type=float, default=0.4, help="at the end, reached by a cosine; default 0.4")
    add("--clip_grad", type=float, default=3.0, help="largest L2 norm of each tensor's gradient; 0 is off; default 3")
    add("--batch_size_per_gpu", type=int, default=64, help="images per process and step; default 64")
    add("--epochs", type=int, default=100, help="default 100")
    add("--freeze_last_layer", type=int, default=1, help="epochs for which the last layer is fixed; default 1")
    add("--lr", type=float, default=0.0005, help="for 256 images per step, scaled linearly; default 0.0005")
    add("--warmup_epochs", type=int, default=10, help="of the learning rate; default 10")
    add("--min_lr", type=float, default=1e-6, help="at the end, not scaled; default 1e-6")
    add("--optimizer", choices=OPTIMIZERS, default="adamw", help="default adamw")
    add("--drop_path_rate", type=float, default=0.1, help="of the student; default 0.1")


def _add_crop_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--global_crops_scale",
        type=float,
        nargs=2,
        default=(0.4, 1.0),
        metavar=("MIN", "MAX"),
        help="share of the image's area; default 0.4 1.0, without local crops better 0.14 1.0",
    )
    add("--local_crops_number", type=int, default=8, help="small crops per image; 0 is no multi-crop; default 8")
    add(
        "--local_crops_scale",
        type=float,
        nargs=2,
        default=(0.05, 0.4),
        metavar=("MIN", "MAX"),
        help="share of the image's area; default 0.05 0.4",
    )


def _add_run_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--data_path",
        default="/path/to/imagenet/train/",
        help="folder of images in class folders or flat, ImageNet's root, or `synthetic` for drawn images",
    )
    add("--output_dir", default=".", help="checkpoints and log.txt; a run found there is continued; default .")
    add("--saveckp_freq", type=int, default=20, help="keep every n-th epoch's checkpoint; 0 keeps none; default 20")
    add("--seed", type=int, default=0, help="default 0")
    add("--num_workers", type=int, default=10, help="loading processes per GPU; default 10")
    add("--dist_url", default="env://", help="where processes meet if torchrun did not start them; default env://")
    add("--local_rank", type=int, default=0, help="ignored, as in DINO: launchers set LOCAL_RANK")


def _add_our_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--pooling",
        choices=POOLINGS,
        default="cls",
        help="global token of student and teacher: DINO's own read-out, mean over patches, or LaSt; default cls",
    )
    add("--top_k", type=patch_count, help="for --pooling last: patches per channel, a number or a share such as 0.25")
    add("--variant", choices=("release", "paper"), default="release", help="LaSt's formula; default release")
    add("--global_crop_size", type=int, default=224, help="pixels; default 224")
    add("--local_crop_size", type=int, default=96, help="pixels; default 96")
    add(
        "--accumulation_steps",
        type=int,
        default=1,
        help="parts that a step's batch is split into to save memory; the gradient is that of the whole; default 1",
    )
    flag = {"type": boolean, "nargs": "?", "const": True, "default": False}
    add("--bf16", **flag, help="bfloat16 in place of --use_fp16, on a GPU or CPU")
    add("--compile", **flag, help="torch.compile the backbones")


def parse_options(description: str, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse main_dino.py's command line; values are checked by `check_options`."""
    return build_parser(description).parse_args(argv)
