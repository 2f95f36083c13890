"""What the converters share: whole files, resuming, processes, counts."""

import argparse
from functools import partial

import pytest
from label_conversion import convert, look_up
from seg_id_tables import coco_stuff_table
from seg_parts import read, save_label

READ = partial(look_up, table=coco_stuff_table())


@pytest.fixture
def sources(tmp_path):
    raw = {f"{index}": save_label(tmp_path / "raw" / f"{index}.png", [0, 91, 255, index]) for index in range(6)}
    return {tmp_path / "out" / f"{stem}.png": path for stem, path in raw.items()}


def run(sources, num_workers=0, overwrite=False, any_count=True):
    args = argparse.Namespace(num_workers=num_workers, overwrite=overwrite, any_count=any_count)
    convert(sources, READ, "coco_stuff", "val", args)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_files_are_lossless_and_counted(sources, num_workers, capsys):
    with pytest.raises(ValueError, match=r"found 6 files \(the official set has 5000\).*--any-count"):
        run(sources, any_count=False)
    assert not min(sources).parent.exists()
    run(sources, num_workers=num_workers)
    for index, target in enumerate(sources):
        values, mode = read(target)
        assert mode == "L"
        assert values.flatten()[:4].tolist() == [0, 80, 255, index]
    assert sorted(path.name for path in min(sources).parent.iterdir()) == [f"{index}.png" for index in range(6)]
    assert "6 files found (the official set has 5000), 6 converted: 6 now, 0 before" in capsys.readouterr().out


def test_a_stopped_run_goes_on(sources, capsys):
    broken = list(sources.values())[3]
    content = broken.read_bytes()
    broken.write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"3\.png cannot be read"):
        run(sources)
    done = [target for target in sources if target.is_file()]
    assert len(done) == 3
    times = [path.stat().st_mtime_ns for path in done]
    broken.write_bytes(content)
    run(sources)
    assert "6 converted: 3 now, 3 before" in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in done] == times
    done[0].write_bytes(b"old")
    run(sources, overwrite=True)
    assert read(done[0])[0].shape == (4, 6)


def test_an_error_in_a_process_names_the_file(sources):
    target, source = list(sources.items())[2]
    save_label(source, [11])
    with pytest.raises(ValueError, match=r"raw/2\.png: it holds the ids 11,"):
        run(sources, num_workers=2)
    assert not target.exists()
