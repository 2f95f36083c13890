"""Checkpoint files: reading runs nothing and explains what it refuses, writing never costs the file that was there.

Loading is strict: what does not fit fails with a text that names it, and leaves the model as it was.
"""

import errno
import os
from pathlib import Path

import pytest
import torch
from checkpoint_parts import Holder, prefixed, saved, timm_vit, torchvision_vit
from safetensors.torch import save_file
from torch import nn

from last_vit.checkpoint import (
    UnsafeCheckpointError,
    check_finite,
    load_checkpoint,
    load_strict,
    read_checkpoint,
    read_weights,
    save_checkpoint,
)

# Reading


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class HostileSystem(Hostile):
    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("hostile", "refused"), [(Hostile, "getattr|pathlib"), (HostileSystem, "posix.system|nt.system")]
)
def test_hostile_pickle_is_refused_and_does_not_run(tmp_path, hostile, refused, zipped):
    victim, path = tmp_path / "victim", tmp_path / "hostile.pth"
    content = {"model": {"weight": torch.ones(1)}, "trainer": hostile(victim)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=f"(?s)asks for ({refused}).*any code.*allow_pickle"):
        read_checkpoint(path)
    assert not victim.exists()
    read_checkpoint(path, allow_pickle=True)
    assert victim.exists(), "the file was harmless: this test proved nothing"


def test_a_module_in_place_of_weights_is_an_error(tmp_path):
    path = saved(tmp_path / "model.pth", nn.Linear(2, 2))
    with pytest.raises(UnsafeCheckpointError, match="Linear"):
        read_checkpoint(path)
    with pytest.raises(ValueError, match="holds a Linear, expected a dict"):
        read_checkpoint(path, allow_pickle=True)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_truncated_file_names_path_and_size(tmp_path, suffix, kept):
    path = tmp_path / f"vit{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(nn.Linear(64, 64).state_dict(), path)
    size = int(path.stat().st_size * kept)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=rf"vit\{suffix} \({size} bytes\).*truncated"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["vit.pth", "vit.safetensors"])
@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("\n<!DOCTYPE html><html>404: Not Found</html>", "web page that was saved in its place"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n", "git-LFS pointer.*git lfs pull"),
        ("hello", "truncated, corrupt or of another kind"),
    ],
)
def test_a_text_file_is_not_a_checkpoint(tmp_path: Path, name: str, text: str, kind: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name} .*cannot be read.*{kind}"):
        read_checkpoint(tmp_path / name)


def test_weights_that_are_not_finite_name_the_file(tmp_path: Path) -> None:
    weights = {"a": torch.ones(2), "b": torch.tensor([1.0, torch.nan, torch.inf])}
    with pytest.raises(ValueError, match=r"bad\.pth: tensor 'b' has 2 of 3 values that are NaN"):
        read_weights(saved(tmp_path / "bad.pth", {"model": weights}))


def test_missing_file_says_what_was_expected_and_what_is_there(tmp_path):
    saved(tmp_path / "last.pth", {"a": torch.ones(1)})
    with pytest.raises(FileNotFoundError, match=r"torch\.save or safetensors; .*holds last\.pth"):
        read_checkpoint(tmp_path / "lost.pth")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_checkpoint(tmp_path / "nowhere" / "lost.pth")


# Writing


def folder_content(folder):
    return sorted(path.name for path in folder.iterdir())


def test_save_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "model.pth"
    for value in (1.0, 2.0):
        save_checkpoint(path, {"model": {"weight": torch.tensor(value)}, "iteration": 3})
        assert read_checkpoint(path) == {"model": {"weight": torch.tensor(value)}, "iteration": 3}
    with pytest.raises((AttributeError, TypeError, RuntimeError), match=r"(?i)pickle|local object|lambda"):
        save_checkpoint(tmp_path / "other.pth", {"weight": lambda: None})
    assert folder_content(tmp_path) == ["model.pth"]


@pytest.mark.parametrize("place", ["os.fsync", "torch.save", "os.replace", "kernel"])
def test_full_disk_keeps_the_old_file(tmp_path, monkeypatch, place):
    """With "kernel", a limit makes it refuse torch's write for real, which torch reports as a RuntimeError."""
    path, limit = tmp_path / "model.pth", None
    save_checkpoint(path, {"weight": torch.ones(1)})
    before = path.read_bytes()

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if place == "kernel":
        resource = pytest.importorskip("resource")
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    else:
        monkeypatch.setattr(place, fail)
    try:
        with pytest.raises(OSError, match=r"model\.pth.*\d+ bytes free.*last good checkpoint is untouched") as error:
            save_checkpoint(path, {"weight": torch.ones(500, 500)})
    finally:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert error.value.errno == (errno.ENOSPC if limit is None else errno.EFBIG)
    assert path.read_bytes() == before
    assert folder_content(tmp_path) == ["model.pth"]


# Loading


def test_wrong_architecture_lists_both_sides_and_leaves_the_model_alone(tmp_path):
    target = torchvision_vit()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    path = saved(tmp_path / "mlp.pth", nn.Sequential(*(nn.Linear(4, 4) for _ in range(6))).state_dict())
    both = r"(?s)mlp\.pth: .*VisionTransformer: 0 of its 32 .*missing.*, 32: class_t.* and 24 more.*unexpected.*, 12: 0"
    with pytest.raises(ValueError, match=both):
        load_checkpoint(target, path)
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())


def other_resolution():
    return {**torchvision_vit().state_dict(), "encoder.pos_embedding": torch.zeros(1, 65, 16)}


@pytest.mark.parametrize(
    ("target", "weights", "match"),
    [
        (torchvision_vit, lambda: torchvision_vit(hidden_dim=32).state_dict(),
         r"other shape.*class_token \[1, 1, 32\] -> \[1, 1, 16\].* and \d+ more"),
        (torchvision_vit, other_resolution, "pos_embedding differs: build the model for the checkpoint's image"),
        (timm_vit, lambda: prefixed("encoder.net.", timm_vit().state_dict()), r"the unknown prefix 'encoder\.net\.'"),
        (torchvision_vit, lambda: torchvision_vit(7).state_dict(), r"7 classes, the model 5: .*num_classes=7"),
        (lambda: Holder(model=timm_vit(5)), lambda: timm_vit(7).state_dict(), "7 classes, the model 5"),
    ],
    ids=["width", "resolution", "prefix", "classes", "classes, wrapped"],
)  # fmt: skip
def test_what_does_not_fit_is_named_with_the_reason(tmp_path, target, weights, match):
    with pytest.raises(ValueError, match=match):
        load_checkpoint(target(), saved(tmp_path / "vit.pth", weights()))


def test_half_precision_weights_are_cast():
    source, target = timm_vit(), timm_vit()
    load_strict(target, {name: tensor.half() for name, tensor in source.state_dict().items()})
    assert target.cls_token.dtype == torch.float32
    torch.testing.assert_close(target.cls_token, source.cls_token, atol=1e-3, rtol=1e-3)


def test_check_finite_names_the_tensor():
    weights = timm_vit().state_dict()
    check_finite({**weights, "steps": torch.tensor(3)})
    weights["blocks.1.norm1.bias"][3] = float("nan")
    with pytest.raises(FloatingPointError, match=r"'blocks\.1\.norm1\.bias' has 1 of 16"):
        check_finite(weights)
