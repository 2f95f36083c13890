"""The bench of the input pipeline: readers that agree on crops, cores from rates, and a small run of it all."""

import json

import bench_data
import bench_readers
import numpy as np
import pytest
import torch
from PIL import Image

FLOPS_VIT_S_16 = 3 * 9.2e9  # published: 4.6 G multiply-adds forward; the backward pass has twice of them


@pytest.fixture(autouse=True)
def threads_as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos" / "inner"
    folder.mkdir(parents=True)
    for index, hw in enumerate([(180, 240), (240, 180), (150, 150)]):
        noise = np.random.default_rng(index).normal(0, 3, (*hw, 3))
        pixels = (np.cumsum(noise, axis=1) + 128).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.jpg", quality=90)
    return folder.parent


@pytest.mark.parametrize("each", bench_readers.ALTERNATIVES, ids=lambda each: each.name)
def test_readers_draw_the_same_crops(photos, each):
    if not each.is_installed:
        pytest.skip(f"{each.package} is not installed")
    paths = sorted(photos.rglob("*.jpg"))
    ours, reader = bench_readers.our_reader(64), each.build(64)
    states = []
    for read in (ours, reader):
        torch.manual_seed(0)
        view = read(paths[0])
        states.append(torch.get_rng_state())
        assert (view.shape, view.dtype) == ((3, 64, 64), torch.float32)
    assert torch.equal(*states)
    difference = bench_readers.mean_difference(reader, ours, paths)
    assert difference < (0.1 if each.same_pixels else 6)


def test_another_crop_is_far(photos):
    """What the bound above would catch."""
    paths = sorted(photos.rglob("*.jpg"))
    ours = bench_readers.our_reader(64)

    def late(path):
        torch.rand(1)
        return ours(path)

    assert bench_readers.mean_difference(late, ours, paths) > 6


def test_operations_of_a_step():
    small, base = (bench_data.training_flops(track, 224) for track in bench_data.CLS_TRACKS)
    assert small == pytest.approx(FLOPS_VIT_S_16, rel=0.04)
    assert base / small == pytest.approx(35.2 / 9.2, rel=0.04)
    assert bench_data.training_flops(bench_data.DINO_TRACK, 224) > 2 * small


def test_stated_rates():
    assert bench_data.stated_rates(["cls_pretrain_ViT-S/16=14e3"]) == {"cls_pretrain_ViT-S/16": 14000}
    for text in ("ViT=3", "dino_ViT-S/16", "dino_ViT-S/16=0", "dino_ViT-S/16=fast", "dino_ViT-S/16=nan"):
        with pytest.raises(ValueError, match="TRACK=IMAGES/S"):
            bench_data.stated_rates([text])


def test_measured_rates_are_an_h200s(tmp_path, capsys):
    path = tmp_path / "record.json"
    assert bench_data.measured_rates(path) == {}
    record = {"device": "NVIDIA H200", "metrics": {"dino_ViT-S/16": 3000.0, "dino_ViT-S/16_cls": 3100.0}}
    path.write_text(json.dumps(record))
    assert bench_data.measured_rates(path) == {"dino_ViT-S/16": 3000.0}
    path.write_text(json.dumps(record | {"device": "NVIDIA A100"}))
    assert bench_data.measured_rates(path) == {}
    assert "another device" in capsys.readouterr().out


def test_small_run(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench_data, "DINO_LOCAL", 1)
    Image.new("L", (50, 50)).save(photos / "grey.jpg")
    bench_data.main(
        [
            *["--rounds", "2", "--images", "4", "--image-size", "32", "--record", "--step-rate", "dino_ViT-S/16=5000"],
            "--photos",
            str(photos),
        ]
    )
    printed = capsys.readouterr().out
    assert "left out: 1 files" in printed
    assert "(ASSUMED, 40% of its peak)" in printed
    assert "5,000 images/s (stated)" in printed
    missing = [each for each in bench_readers.ALTERNATIVES if not each.is_installed]
    assert printed.count("not measured") == len(missing)
    metrics = json.loads((tmp_path / "results" / "bench_data.json").read_text())["metrics"]
    assert metrics["difference_ours"] < 0.1
    rates = metrics["rate_dino_low"], metrics["rate_dino"], metrics["rate_dino_high"]
    cores = metrics["cores_dino_ViT_S_16_low"], metrics["cores_dino_ViT_S_16"], metrics["cores_dino_ViT_S_16_high"]
    assert cores == tuple(np.ceil(5000 / rate) for rate in reversed(rates))
    assert rates[0] <= rates[1] <= rates[2]


def test_wrong_arguments(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        bench_data.main(["--photos", str(tmp_path)])
    assert "no JPEG in colour" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        bench_data.main(["--threads", "2"])
    assert "rates are of one core" in capsys.readouterr().err
