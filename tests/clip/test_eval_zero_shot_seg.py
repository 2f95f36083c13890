"""Zero-shot segmentation from the command line: numbers against a plain pass, records, pictures, torchrun, errors."""

import json
import os
import shutil
from pathlib import Path

import eval_zero_shot_seg as script
import numpy as np
import pytest
import torch
from clip_parts import tiny_clip, tiny_tokenizer, write_clip
from PIL import Image
from seg_parts import make_voc
from seg_sets import resize_short_side
from torch.nn import functional as F

from last_vit.clip_dense import clip_dense_features
from last_vit.clip_text import encode_class_names, read_templates
from last_vit.data.synthetic import SyntheticObjects

REPO = Path(__file__).resolve().parents[2]
CPU = ("--device", "cpu", "--num-workers", "0", "--text-cache", "cache")
NAMES = [["a thing", "stuff", "some wall"], ["ship"], ["dog", "cat"], ["table"]]
CUSTOM = ("--dataset", "custom", "--root", "rooms", "--class-names", "rooms/classes.txt", "--zero-label", "background")
SMALL = ("--short-side", "40", "--crop", "32", "--stride", "20", "--templates", "a photo of a {}")
MODEL = ("--model", "Tiny=open_clip:clip_tiny.json@clip_tiny.pt")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A CLIP and five images with labels of four classes, at sizes of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    write_clip(tmp_path)
    drawn = SyntheticObjects(5, "val", image_size=64, num_classes=3)
    for folder in ("images", "labels"):
        (tmp_path / "rooms" / folder).mkdir(parents=True)
    for index in range(5):
        size = (50 + 9 * index, 80 - 7 * index)
        sample = drawn.render(index)
        sample.image.resize(size).save(tmp_path / "rooms/images" / f"{index}.jpg")
        label = np.where(np.asarray(sample.mask) > 0, sample.label + 1, 0).astype(np.uint8)
        label[:3] = 255
        Image.fromarray(label).resize(size, Image.Resampling.NEAREST).save(tmp_path / "rooms/labels" / f"{index}.png")
    (tmp_path / "rooms/classes.txt").write_text("".join(", ".join(names) + "\n" for names in NAMES))
    return tmp_path


def run(*flags):
    script.main([*CPU, *flags])
    return results()


def results():
    paths = sorted((*Path("results").glob("*.json"), *Path("output").rglob("*.json")), key=os.path.getmtime)
    return {path.stem: json.loads(path.read_text()) for path in paths}


def plain_iou(prob_threshold, last_block="vanilla"):
    """Image after image, window after window, all names at once, in float64; per-class IoU in percent."""
    model = tiny_clip()
    names = [name for synonyms in NAMES for name in synonyms]
    classes = torch.tensor([label for label, synonyms in enumerate(NAMES) for _ in synonyms])
    text = encode_class_names(model, tiny_tokenizer(), names, read_templates("a photo of a {}")).double()
    mean = torch.tensor((0.48145466, 0.4578275, 0.40821073))[:, None, None]
    std = torch.tensor((0.26862954, 0.26130258, 0.27577711))[:, None, None]
    inter, union = np.zeros(4), np.zeros(4)
    for index in range(5):
        pixels = np.array(Image.open(f"rooms/images/{index}.jpg"))
        label = np.array(Image.open(f"rooms/labels/{index}.png"))
        image = (resize_short_side(torch.from_numpy(pixels).permute(2, 0, 1), 40) / 255 - mean) / std
        height, width = image.shape[1:]
        total, count = torch.zeros(len(names), height, width, dtype=torch.float64), torch.zeros(height, width)
        for top in sorted({min(y, height - 32) for y in range(0, height - 32 + 20, 20)}):
            for left in sorted({min(x, width - 32) for x in range(0, width - 32 + 20, 20)}):
                window = image[None, :, top : top + 32, left : left + 32]
                with torch.inference_mode():
                    features, grid_hw = clip_dense_features(model, window, last_block=last_block)
                cosine = (F.normalize(features.double(), dim=2) @ text.T).transpose(1, 2).unflatten(2, grid_hw)
                total[:, top : top + 32, left : left + 32] += F.interpolate(cosine, size=(32, 32), mode="bilinear")[0]
                count[top : top + 32, left : left + 32] += 1
        maps = F.interpolate((total / count)[None], size=label.shape, mode="bilinear")[0]
        probabilities = (maps * 40).softmax(dim=0)
        best = torch.stack([probabilities[classes == c].amax(dim=0) for c in range(4)])
        found = best.argmax(dim=0)
        found[best.amax(dim=0) < prob_threshold] = 0
        for c in range(4):
            guess, truth = (each[label != 255] == c for each in (found.numpy(), label))
            inter[c] += (guess & truth).sum()
            union[c] += (guess | truth).sum()
    with np.errstate(invalid="ignore"):
        return 100 * inter / union


@pytest.mark.parametrize(("prob_threshold", "last_block"), [(0.2, "vanilla"), (0.0, "sclip")])
def test_miou_is_that_of_a_plain_pass(here, prob_threshold, last_block):
    flags = ("--prob-threshold", str(prob_threshold), "--last-block", last_block, "--logit-scale", "40")
    # the pooling takes no part
    models = (*MODEL, "--model", "LaSt=open_clip:clip_tiny.json@clip_tiny.pt,pool=last,top_k=1")
    record, other = run(*CUSTOM, *SMALL, *models, *flags, "--per-class").values()
    assert other["metrics"] == record["metrics"]
    expected = plain_iou(prob_threshold, last_block)
    # pixels where two classes tie to within float32 may fall either way
    assert record["metrics"]["miou"] == pytest.approx(np.nanmean(expected), abs=0.05)
    found = [record["metrics"].get(f"iou_{names[0]}", np.nan) for names in NAMES]
    np.testing.assert_allclose(found, expected, atol=0.1)
    assert record["n_images"] == 5
    assert record["config"]["num_absent"] == np.isnan(expected).sum()


def test_batches_change_nothing_and_half_precision_is_near(here):
    def miou(*flags):
        shutil.rmtree("output", ignore_errors=True)
        return next(iter(run(*CUSTOM, *SMALL, *MODEL, *flags).values()))["metrics"]

    one = miou("--batch-size", "1", "--window-batch", "1")
    assert one == miou("--batch-size", "5", "--window-batch", "3")
    for precision in ("bf16", "fp16"):
        assert miou("--precision", precision)["miou"] == pytest.approx(one["miou"], abs=5)


def test_records_name_what_made_them(here, capsys):
    flags = ("--protocol", "clearclip", "--pamr", "on", "--last-block", "naclip", "--table", *SMALL)
    pictures = ("--overlays", "pictures", "--num-overlays", "2")
    found = run(
        *CUSTOM, *flags, *MODEL, "--model", "LaSt=open_clip:clip_tiny.json@clip_tiny.pt,pool=last,top_k=3", *pictures
    )
    assert {record["row"] for record in found.values()} == {"Tiny", "LaSt"}
    source = "rooms val, 40 px, clearclip, PAMR, naclip block, crop 32, stride 20, prompts 'a photo of a {}'"
    for record in found.values():
        assert record["dataset"] == source
        assert record["table"] == "zero_shot_seg"
        assert len(record["checkpoint_sha256"]) == 16
        config = record["config"]
        settings = (config["short_side"], config["crop"], config["stride"], config["logit_scale"], config["pamr"])
        assert settings == (40, 32, 20, 50.0, True)
        assert (config["prob_threshold"], config["pad_to_patch"], config["protocol"]) == (0.15, True, "clearclip")
        assert config["templates"] == ["a photo of a {}"]
    last = next(record for record in found.values() if record["row"] == "LaSt")
    assert (last["config"]["pooling"]["pool"], last["config"]["pooling"]["top_k"]) == ("last", 3)
    out = capsys.readouterr().out
    assert "trained pooling pool=last, top_k=3" in out
    assert "images/s" in out
    drawn = sorted(Path("pictures").iterdir())
    assert [path.name for path in drawn] == [f"{name}_rooms_{index}.png" for name in ("LaSt", "Tiny") for index in "02"]
    with Image.open(drawn[0]) as picture:
        assert picture.size[0] > 1000


def test_a_benchmark_in_its_layout_and_whole_images(here, capsys):
    """VOC20 ignores 0; a part of the set is only taken when asked for, and the record says so."""
    make_voc(here, {"a": [0, 1, 20, 255], "b": [0, 5, 5, 9]})
    flags = ("--dataset", "voc20", "--root", "VOC2012", *SMALL, *MODEL)
    with pytest.raises(SystemExit):
        run(*flags)
    assert "official set 1449" in capsys.readouterr().err
    (record,) = run(*flags, "--any-count", "--per-class").values()
    assert record["dataset"].startswith("VOC20 val, 40 px, sclip, crop 32, stride 20, ")
    assert record["dataset"].endswith(", 2 of 1449 images")
    assert record["config"]["num_classes"] == 20
    out = capsys.readouterr().out
    assert "occur nowhere and are left out" in out
    assert "aeroplane" in out
    shutil.rmtree("output")
    (here / "names.txt").write_text("sky; water\nship\ndog\nsand\n")
    flags = ("--class-names", "names.txt", "--short-side", "40", "--crop", "0", *SMALL[-2:])
    (record,) = run(*CUSTOM[:4], *flags, *MODEL).values()
    assert record["dataset"] == "rooms val, 40 px, sclip, crop 0, prompts 'a photo of a {}'"


ERRORS = [
    (("--crop", "7", "--stride", "7"), "at least a patch of 8 pixels, got 7"),
    (("--stride", "0"), "got 0; for the whole image at once"),
    (("--stride", "33"), "leave no gap, got 33"),
    (("--logit-scale", "0"), "the logit scale must be positive"),
    (("--prob-threshold", "1.5"), "probability threshold must be in [0, 1)"),
    (("--zero-label", "class", "--prob-threshold", "0.1"), "and rooms has none"),
    (("--root", "nowhere"), "nowhere"),
    (("--templates", "a photo"), "prompt templates are"),
    (("--model", "B=torchvision:resnet18@random"), "zero-shot needs a text tower"),
    (("--model", "B=open_clip:clip_tiny.json"), "no weights"),
    (("--dataset", "ade20k"), "--zero-label is for custom data"),
    (("--dataset", "voc21", "--zero-label", "class"), "it names 4 classes, the data has 21"),
]


def test_errors_are_one_line(here, capsys):
    for flags, message in ERRORS:
        with pytest.raises(SystemExit) as stop:
            run(*CUSTOM, *SMALL, *MODEL, *flags)
        assert stop.value.code == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("eval_zero_shot_seg.py: error: ")
        assert message in line


def test_labels_that_do_not_fit_are_named(here, capsys):
    for label, message in (
        (np.full((80, 50), 9, dtype=np.uint8), "holds 9, which is no class"),
        (np.zeros((8, 5), dtype=np.uint8), "0.png has 5 x 8 pixels"),
    ):
        Image.fromarray(label).save("rooms/labels/0.png")
        with pytest.raises(SystemExit):
            run(*CUSTOM, *SMALL, *MODEL)
        assert message in capsys.readouterr().err
