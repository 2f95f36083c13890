"""Files that are whole or not there, whatever happens while they are written."""

import contextlib

import pytest

from last_vit import atomic_file as module
from last_vit.atomic_file import atomic_file


@pytest.mark.parametrize("sole_writer", [False, True])
@pytest.mark.parametrize("step", ["fsync", "replace", None])
def test_the_new_content_or_the_old_one(tmp_path, monkeypatch, step, sole_writer):
    target = tmp_path / "new" / "x.bin"
    with atomic_file(target, sole_writer) as file:
        file.write(b"old")
    assert target.stat().st_mode & 0o777 == 0o644

    def fail(*_):
        raise OSError("disk full")

    if step:
        monkeypatch.setattr(module.os, step, fail)
    with contextlib.suppress(OSError, KeyError), atomic_file(target, sole_writer) as file:
        file.write(b"half")
        if step is None:
            raise KeyError
    assert target.read_bytes() == b"old"
    assert list(target.parent.iterdir()) == [target]


def test_what_a_killed_writer_left_is_overwritten(tmp_path):
    (tmp_path / ".x.bin.tmp").write_bytes(b"left of a much longer file")
    with atomic_file(tmp_path / "x.bin", sole_writer=True) as file:
        file.write(b"whole")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x.bin", b"whole")]
