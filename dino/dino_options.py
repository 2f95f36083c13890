"""The command line of main_dino.py: DINO's 31 flags with their defaults and spellings, and ours.

Booleans are written as in DINO: on, true or 1, and off, false or 0. Imports no torch, so that --help needs none.
"""

import argparse
import math
import sys
from collections.abc import Callable
from typing import Any

from last_vit.command_line import cores_at_hand, non_negative, patch_count, positive
from last_vit.names import VARIANTS

OPTIMIZERS = ("adamw", "sgd", "lars")
POOLINGS = ("cls", "mean", "last")


def boolean(text: str) -> bool:
    """DINO's spelling of a boolean."""
    if text.lower() in ("on", "true", "1"):
        return True
    if text.lower() in ("off", "false", "0"):
        return False
    raise argparse.ArgumentTypeError(f"must be on, true, 1, off, false or 0, got {text!r}")


def number(low: float, high: float = math.inf) -> Callable[[str], float]:
    """A parser of numbers from `low` to `high`, both included."""

    def parse(text: str) -> float:
        if not low <= float(text) <= high:
            bounds = f"in [{low:g}, {high:g}]" if high < math.inf else "positive" if low > 0 else "at least 0"
            raise argparse.ArgumentTypeError(f"must be {bounds}, got {text}")
        return float(text)

    parse.__name__ = "number"  # for argparse's message about other text
    return parse


_AMOUNT, _POSITIVE, _SHARE = number(0), number(sys.float_info.min), number(0, 1)
_SWITCH = {"nargs": "?", "const": True}
_RANGE = {"nargs": 2, "metavar": ("MIN", "MAX")}
# group -> rows of name, type or choices, default, help, further arguments of add_argument
_FLAGS: dict[str, list[tuple[Any, ...]]] = {
    "model": [
        (
            "arch", str, "vit_small",
            "vit_tiny, vit_small, vit_base (or deit_*), xcit_*, or a torchvision ResNet or kin; also vit_mini, a third "
            "of vit_tiny for small images",
        ),
        ("patch_size", positive, 16, "side of a ViT's patches in pixels"),
        ("out_dim", positive, 65536, "outputs of the head"),
        (
            "norm_last_layer", boolean, True,
            "keep the last layer's weights normalised; off can be better for a ViT-S, on is safer",
        ),
        ("momentum_teacher", _SHARE, 0.996, "of the EMA, cosine to 1"),
        ("use_bn_in_head", boolean, False, "batch norm in the head"),
        ("warmup_teacher_temp", _POSITIVE, 0.04, "teacher's temperature at the start"),
        ("teacher_temp", _POSITIVE, 0.04, "teacher's temperature after its warm-up"),
        ("warmup_teacher_temp_epochs", non_negative, 0, "length of that warm-up"),
    ],
    "optimisation": [
        ("use_fp16", boolean, True, "float16 on a GPU; a CPU trains in float32"),
        ("weight_decay", _AMOUNT, 0.04, "at the start"),
        ("weight_decay_end", _AMOUNT, 0.4, "at the end, reached by a cosine"),
        ("clip_grad", _AMOUNT, 3.0, "largest L2 norm of each tensor's gradient; 0 is off"),
        ("batch_size_per_gpu", positive, 64, "images per process and step"),
        ("epochs", positive, 100, "length of the training"),
        ("freeze_last_layer", non_negative, 1, "epochs for which the last layer is fixed"),
        ("lr", _AMOUNT, 0.0005, "for 256 images per step, scaled linearly"),
        ("warmup_epochs", non_negative, 10, "of the learning rate"),
        ("min_lr", _AMOUNT, 1e-6, "at the end, not scaled"),
        ("optimizer", OPTIMIZERS, "adamw", "what moves the student"),
        ("drop_path_rate", _SHARE, 0.1, "of the student"),
    ],
    "crops": [
        ("global_crops_scale", float, (0.4, 1.0), "share of the area; without local crops better 0.14 1", _RANGE),
        ("local_crops_number", non_negative, 8, "small crops per image; 0 is no multi-crop"),
        ("local_crops_scale", float, (0.05, 0.4), "share of the image's area", _RANGE),
    ],
    "run": [
        (
            "data_path", str, "/path/to/imagenet/train/",
            "folder of images in class folders or flat, ImageNet's root, or `synthetic` for drawn images",
        ),
        ("output_dir", str, ".", "checkpoints and log.txt; a run found there is continued"),
        ("saveckp_freq", non_negative, 20, "keep every n-th epoch's checkpoint; 0 keeps none"),
        ("seed", non_negative, 0, "of weights, data and steps"),
        ("num_workers", non_negative, cores_at_hand(), "the cores at hand, at most 8; loading processes per GPU"),
        ("dist_url", str, "env://", "where processes meet if torchrun did not start them"),
        ("local_rank", int, 0, "ignored, as in DINO: launchers set LOCAL_RANK"),
    ],
    "not in DINO": [
        ("pooling", POOLINGS, "cls", "global token of student and teacher: DINO's own read-out, mean, or LaSt"),
        ("top_k", patch_count, None, "for --pooling last: patches per channel, a number or a share such as 0.25"),
        ("variant", VARIANTS, "release", "LaSt's formula"),
        ("global_crop_size", positive, 224, "pixels"),
        ("local_crop_size", positive, 96, "pixels"),
        ("skip_broken", boolean, False, "read all images once and leave out and count unreadable ones", _SWITCH),
        ("accumulation_steps", positive, 1, "parts that a step's batch is split into; the gradient is the whole's"),
        ("bf16", boolean, False, "bfloat16 in place of --use_fp16, on a GPU or CPU", _SWITCH),
        ("compile", boolean, False, "torch.compile the backbones", _SWITCH),
        ("fused_pool", boolean, False, "LaSt by fused GPU kernels", _SWITCH),
        ("wandb", boolean, False, "log.txt in Weights & Biases, too; stays here with WANDB_MODE=offline", _SWITCH),
    ],
}  # fmt: skip


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Those of main_dino.py, which run_with_submitit.py takes, too."""
    for title, rows in _FLAGS.items():
        group = parser.add_argument_group(title)
        for flag, kind, default, text, *more in rows:
            accepted = {"choices": kind} if isinstance(kind, tuple) else {"type": kind}
            shown = " ".join(str(part) for part in (default if isinstance(default, tuple) else (default,))).lower()
            text = text if default is None else f"{text}; default {shown}"
            spellings = ("--skip-broken", "--skip_broken") if flag == "skip_broken" else (f"--{flag}",)
            group.add_argument(*spellings, default=default, help=text, **accepted, **(more[0] if more else {}))


def check_options(args: argparse.Namespace) -> None:
    """Refuse values that do not go together, and would fail, or quietly do something else, later."""
    for name in ("warmup_epochs", "warmup_teacher_temp_epochs"):
        if getattr(args, name) > args.epochs:
            raise ValueError(f"--{name} is {getattr(args, name)} and --epochs {args.epochs}: a warm-up is part of them")
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
    if args.arch.startswith(("vit", "deit")):
        for name, size in zip(("global_crop_size", "local_crop_size"), crop_sizes(args), strict=False):
            if size % args.patch_size:
                hint = ": the crop is smaller than a patch" if size < args.patch_size else ""
                raise ValueError(
                    f"--{name} must be a multiple of --patch_size {args.patch_size}, got {size} pixels{hint}"
                )


def crop_sizes(args: argparse.Namespace) -> tuple[int, ...]:
    """Sides in pixels of the crops that a training sees, the global one first."""
    return (args.global_crop_size, args.local_crop_size) if args.local_crops_number else (args.global_crop_size,)
