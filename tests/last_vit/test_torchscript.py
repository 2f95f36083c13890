"""TorchScript archives: the loaded module's weights, without its program having run, and nothing but weights."""

import os
import pickle
import zipfile

import pytest
import torch
from torch import nn

from last_vit.checkpoint import UnsafeCheckpointError, read_checkpoint, read_torchscript

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")


class Net(nn.Module):
    """All kinds of storage, a tensor twice, a view, a buffer, and attributes that are no weights."""

    def __init__(self, tied: bool = True) -> None:
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
def test_the_weights_of_the_loaded_module(tmp_path, how):
    path, net = tmp_path / "net.pt", Net(tied=how == "script").eval()  # tracing refuses ties
    module = torch.jit.script(net) if how == "script" else torch.jit.trace(net, torch.rand(1, 3, 8, 8))
    module.save(str(path))
    found, expected = read_checkpoint(path), torch.jit.load(str(path)).state_dict()
    assert found.keys() == expected.keys() >= {"net.1.running_mean", "short", "row"}
    assert "note" not in found
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


def test_nothing_of_the_program_is_compiled(tmp_path, monkeypatch):
    path = tmp_path / "net.pt"
    torch.jit.script(Net()).save(str(path))
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data + b"\n  this is no program\n" if name.endswith(".py") else data)
    monkeypatch.setattr("torch.jit.load", None)
    assert read_checkpoint(path)["short"].shape == (3,)


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def write(path, content, names=()):
    """A zip that claims to be an archive, with a pickle of our own."""
    data = pickle.dumps(content, protocol=2) if not isinstance(content, bytes) else content
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", data)
        archive.writestr("net/constants.pkl", b"")
        archive.writestr("net/version", b"3")
        for name in names:
            archive.writestr(f"net/{name}", b"\0" * 16)


def test_hostile_names_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "net.pt"
    write(path, {"weight": Hostile()})
    with pytest.raises(UnsafeCheckpointError, match=r"asks for \w+\.mkdir.*allow_pickle=True"):
        read_checkpoint(path)
    assert not (tmp_path / "owned").exists()


STORAGE = b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x05\x00\x00\x00ownedI01\nsb.",  # set an attribute of it
        b"\x80\x02c__torch__\nA\n}X\x05\x00\x00\x00ownedI01\nsb.",  # of the class
        b"\x80\x02c__torch__\nA\n)\x81(lb.",  # a state that is no dict
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + STORAGE + b"K\x00K\x09\x85K\x01\x85tR.",  # beyond the storage
        b"\x80\x02ctorch.jit._pickle\nbuild_classes\n.",
        b"\x80\x02.",
    ],
)
def test_other_tricks_end_in_an_error(tmp_path, program):
    path = tmp_path / "net.pt"
    write(path, program, ["data/0"])
    with pytest.raises(ValueError, match=r"cannot be read as a checkpoint|was refused"):
        read_checkpoint(path)


def test_other_files_are_none(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(b"no zip")
    for name in ("a.pt", "b.pt"):
        with (tmp_path / name).open("rb") as file:
            assert read_torchscript(file) is None


def test_torch_jit_reads_what_was_refused_where_that_is_allowed(tmp_path, monkeypatch):
    torch.jit.script(Net()).save(str(tmp_path / "net.pt"))

    def refuse(_):
        raise pickle.UnpicklingError("Unsupported global: GLOBAL some.name was not allowed")

    monkeypatch.setattr("last_vit.checkpoint.read_torchscript", refuse)
    with pytest.raises(UnsafeCheckpointError, match=r"asks for some\.name"):
        read_checkpoint(tmp_path / "net.pt")
    assert "net.1.running_mean" in read_checkpoint(tmp_path / "net.pt", allow_pickle=True)
