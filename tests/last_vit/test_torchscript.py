"""TorchScript archives: the loaded module's weights, without its program having run, and nothing but weights."""

import os
import pickle
import zipfile

import pytest
import torch
from torch import nn

from last_vit.checkpoint import UnsafeCheckpointError, read_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")


class Net(nn.Module):
    """All kinds of storage, a tensor twice, a view, a buffer, and attributes that are no weights."""

    def __init__(self, tied=True):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4))
        self.short = nn.Parameter(torch.randn(3).half(), requires_grad=False)
        self.brain = nn.Parameter(torch.randn(3).bfloat16(), requires_grad=False)
        self.long = nn.Parameter(torch.randn(2, 3).double().T, requires_grad=False)
        if tied:
            self.tied = self.short
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("row", torch.arange(12).reshape(3, 4)[1])
        self.register_buffer("nothing", torch.empty(0))
        self.note = torch.ones(5)
        self.sizes = [1, 2, 3]
        self.name = "net"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


@pytest.mark.parametrize("how", ["script", "trace"])
def test_the_weights_of_the_loaded_module(tmp_path, monkeypatch, how):
    """Read also where the program cannot be compiled."""
    path, net = tmp_path / "net.pt", Net(tied=how == "script").eval()  # tracing refuses ties
    module = torch.jit.script(net) if how == "script" else torch.jit.trace(net, torch.rand(1, 3, 8, 8))
    module.save(str(path))
    expected = torch.jit.load(str(path)).state_dict()
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data + b"\n  this is no program\n" if name.endswith(".py") else data)
    monkeypatch.setattr("torch.jit.load", None)
    found = read_checkpoint(path)
    assert found.keys() == expected.keys() >= {"net.1.running_mean", "short", "row"}
    assert "note" not in found
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("owned",)


STORAGE = b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"


@pytest.mark.parametrize(
    ("program", "match"),
    [
        (pickle.dumps({"weight": Hostile()}, protocol=2), r"asks for \w+\.mkdir.*allow_pickle"),
        # sets an attribute of torch's function, and of the class
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x05\x00\x00\x00ownedI01\nsb.", "cannot be read"),
        (b"\x80\x02c__torch__\nA\n}X\x05\x00\x00\x00ownedI01\nsb.", "cannot be read"),
        (b"\x80\x02c__torch__\nA\n)\x81(lb.", "cannot be read"),  # a state that is no dict
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + STORAGE + b"K\x00K\x09\x85K\x01\x85tR.", "cannot be read"),
        (b"\x80\x02ctorch.jit._pickle\nbuild_classes\n.", "was refused"),
        (b"\x80\x02.", "cannot be read"),
    ],
    ids=["mkdir", "function", "class", "state", "beyond the storage", "build_classes", "nothing"],
)
def test_a_hostile_archive_ends_in_an_error(tmp_path, monkeypatch, program, match):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("net.pt", "w") as archive:
        archive.writestr("net/data.pkl", program)
        archive.writestr("net/constants.pkl", b"")
        archive.writestr("net/version", b"3")
        archive.writestr("net/data/0", b"\0" * 16)
    with pytest.raises(ValueError, match=match):
        read_checkpoint("net.pt")
    assert not (tmp_path / "owned").exists()


def test_torch_jit_reads_what_was_refused_where_that_is_allowed(tmp_path, monkeypatch):
    torch.jit.script(Net()).save(str(tmp_path / "net.pt"))

    def refuse(_):
        raise pickle.UnpicklingError("Unsupported global: GLOBAL some.name was not allowed")

    monkeypatch.setattr("last_vit.checkpoint.read_torchscript", refuse)
    with pytest.raises(UnsafeCheckpointError, match=r"asks for some\.name"):
        read_checkpoint(tmp_path / "net.pt")
    assert "net.1.running_mean" in read_checkpoint(tmp_path / "net.pt", allow_pickle=True)
