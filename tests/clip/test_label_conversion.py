"""What the converters share: whole files, resuming, processes, counts, and no writing where the sources are."""

import argparse
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from label_conversion import Conversion, check_target, convert, look_up
from seg_id_tables import coco_stuff_table
from seg_parts import read, save_label

READ = partial(look_up, table=coco_stuff_table())


def flags(num_workers=1, overwrite=False, any_count=False):
    return argparse.Namespace(num_workers=num_workers, overwrite=overwrite, any_count=any_count)


@pytest.fixture
def conversions(tmp_path):
    raw = {f"{index}": save_label(tmp_path / "raw" / f"{index}.png", [0, 91, 255, index]) for index in range(6)}
    return [Conversion(path, tmp_path / "out" / f"{stem}.png") for stem, path in raw.items()]


def run(conversions, read=READ, expected=6, **options):
    convert(conversions, read, what="set val", expected=expected, args=flags(**options))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_files_are_lossless_and_counted(conversions, num_workers, capsys):
    run(conversions, num_workers=num_workers)
    for index, conversion in enumerate(conversions):
        values, mode = read(conversion.target)
        assert mode == "L"
        assert values.flatten()[:4].tolist() == [0, 80, 255, index]
    assert sorted(p.name for p in conversions[0].target.parent.iterdir()) == [f"{index}.png" for index in range(6)]
    assert "set val: 6 files found (the official set has 6), 6 converted: 6 now, 0 before" in capsys.readouterr().out


def test_a_stopped_run_goes_on(conversions, capsys):
    sources = [conversion.source for conversion in conversions]
    broken = sources[3].read_bytes()
    sources[3].write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"3\.png cannot be read"):
        run(conversions)
    done = [conversion.target for conversion in conversions if conversion.target.is_file()]
    assert len(done) == 3
    times = [path.stat().st_mtime_ns for path in done]
    sources[3].write_bytes(broken)
    run(conversions)
    assert "6 converted: 3 now, 3 before" in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in done] == times
    done[0].write_bytes(b"old")
    run(conversions)
    assert done[0].read_bytes() == b"old"
    run(conversions, overwrite=True)
    assert read(done[0])[0].shape == (4, 6)


def test_an_error_in_a_process_names_the_file(conversions):
    save_label(conversions[2].source, [11])
    with pytest.raises(ValueError, match=r"raw/2\.png: it holds the ids 11,"):
        run(conversions, num_workers=2)
    assert not conversions[2].target.exists()


def test_other_counts_are_refused_before_any_work(conversions, capsys):
    with pytest.raises(ValueError, match=r"set val: found 6 files \(the official set has 5000\).*--any-count"):
        run(conversions, expected=5000)
    assert not conversions[0].target.parent.exists()
    run(conversions, expected=5000, any_count=True)
    assert "6 files found (the official set has 5000), 6 converted" in capsys.readouterr().out
    with pytest.raises(ValueError, match="6 files would be written to 1 names"):
        run([Conversion(each.source, conversions[0].target) for each in conversions])


def test_sources_are_not_written_to_unless_told(tmp_path):
    check_target(tmp_path / "a", tmp_path / "b", beside=False)
    check_target(tmp_path / "a", tmp_path / "a", beside=True)
    for target in (tmp_path / "a", tmp_path / "b" / ".." / "a" / "c"):
        with pytest.raises(ValueError, match=r"is the folder of the source files: .* --beside"):
            check_target(tmp_path / "a", target, beside=False)


def test_colours_are_refused(tmp_path):
    path = save_label(tmp_path / "1.png", np.zeros((4, 6, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"1\.png cannot be read: its mode is RGB"):
        READ(path)


@pytest.mark.parametrize("tool", ["coco_stuff", "coco_object", "context59", "cityscapes"])
def test_help_needs_no_torch(tool):
    code = f"import sys; sys.modules['torch'] = None; import convert_{tool}; convert_{tool}.main(['--help'])"
    folder = Path(__file__).resolve().parents[2] / "tools"  # first on the path, as when a tool is run by name
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--any-count" in done.stdout
