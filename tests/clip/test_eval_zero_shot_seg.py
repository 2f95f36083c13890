"""Zero-shot segmentation, of data sets and of photos: numbers against a plain pass, records, pictures, errors."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import eval_zero_shot_seg as script
import numpy as np
import open_clip
import photo_segmentation
import pytest
import segment
import torch
from class_names import flatten_names, parse_vocabulary
from clip_parts import tiny_clip, tiny_tokenizer, write_clip
from label_maps import LabelRule
from miou import MeanIoU
from PIL import Image
from record_parts import read_records
from seg_parts import make_voc
from seg_sets import resize_short_side
from torch.nn import functional as F
from zero_shot_models import load_clip_argument
from zero_shot_segmentation import build_segmenter, choose_setting
from zero_shot_segmenter import ZeroShotSegmenter

from last_vit.clip_dense import clip_dense_features
from last_vit.clip_text import encode_class_names, read_templates
from last_vit.data.synthetic import SyntheticObjects
from last_vit.models import parse_model_arguments

CPU = ("--device", "cpu", "--num-workers", "0", "--text-cache", "cache")
NAMES = [["a thing", "stuff", "some wall"], ["ship"], ["dog", "cat"], ["table"]]
CUSTOM = ("--dataset", "custom", "--root", "rooms", "--class-names", "rooms/classes.txt", "--zero-label", "background")
SMALL = ("--short-side", "40", "--crop", "32", "--stride", "20", "--templates", "a photo of a {}")
PHOTO = ("--vocabulary", "ship, dog; cat, table", "--model", "Tiny=open_clip:clip_tiny.json@clip_tiny.pt", "--device",
         "cpu", "--no-text-cache", "--short-side", "40", "--templates", "a photo of a {}")  # fmt: skip
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
    return read_records()


def by_hand(prob_threshold, last_block):
    """mIoU and IoU of each class of labels that test_zero_shot_segmenter.py holds to a plain pass."""
    model = tiny_clip()
    names, classes = flatten_names(NAMES)
    segmenter = ZeroShotSegmenter(
        dense=partial(clip_dense_features, model, last_block=last_block),
        text=encode_class_names(model, tiny_tokenizer(), names, read_templates("a photo of a {}")),
        rule=LabelRule(classes, 40.0, prob_threshold),
        mean=open_clip.OPENAI_DATASET_MEAN,
        std=open_clip.OPENAI_DATASET_STD,
        patch_size=8,
        crop=32,
        stride=20,
    )
    metric = MeanIoU(4)
    for index in range(5):
        pixels = torch.from_numpy(np.array(Image.open(f"rooms/images/{index}.jpg"))).permute(2, 0, 1)
        label = torch.from_numpy(np.array(Image.open(f"rooms/labels/{index}.png")))
        metric.update(segmenter([resize_short_side(pixels, 40)], [label.shape])[0], label)
    return metric.compute()


@pytest.mark.parametrize(("prob_threshold", "last_block"), [(0.2, "vanilla"), (0.0, "sclip")])
def test_miou_is_that_of_a_plain_pass(here, prob_threshold, last_block):
    flags = ("--prob-threshold", str(prob_threshold), "--last-block", last_block, "--logit-scale", "40")
    # the pooling takes no part
    models = (*MODEL, "--model", "LaSt=open_clip:clip_tiny.json@clip_tiny.pt,pool=last,top_k=1")
    other, record = run(*CUSTOM, *SMALL, *models, *flags, "--per-class")  # LaSt, Tiny
    assert other["metrics"] == record["metrics"]
    expected = by_hand(prob_threshold, last_block)
    assert record["metrics"]["miou"] == pytest.approx(expected["miou"], abs=0.01)
    found = [record["metrics"].get(f"iou_{names[0]}") for names in NAMES]
    assert found == [None if iou is None else pytest.approx(iou, abs=0.01) for iou in expected["iou"]]
    assert (record["n_images"], record["config"]["num_absent"]) == (5, expected["num_absent"])


def test_records_name_what_made_them(here, capsys):
    flags = ("--protocol", "clearclip", "--pamr", "on", "--last-block", "naclip", "--table", *SMALL)
    pictures = ("--overlays", "pictures", "--num-overlays", "2")
    found = run(
        *CUSTOM, *flags, *MODEL, "--model", "LaSt=open_clip:clip_tiny.json@clip_tiny.pt,pool=last,top_k=3", *pictures
    )
    assert [record["row"] for record in found] == ["LaSt", "Tiny"]
    source = "rooms val, 40 px, clearclip, PAMR, naclip block, crop 32, stride 20, prompts 'a photo of a {}'"
    wanted = {"short_side": 40, "crop": 32, "stride": 20, "logit_scale": 50.0, "pamr": True, "prob_threshold": 0.15}
    wanted |= {"pad_to_patch": True, "protocol": "clearclip", "templates": ["a photo of a {}"]}
    for record in found:
        assert (record["dataset"], record["table"]) == (source, "zero_shot_seg")
        assert len(record["checkpoint_sha256"]) == 16
        assert wanted.items() <= record["config"].items()
    pooling = found[0]["config"]["pooling"]
    assert (pooling["pool"], pooling["top_k"]) == ("last", 3)
    assert "trained pooling pool=last, top_k=3" in capsys.readouterr().out
    drawn = sorted(Path("pictures").iterdir())
    assert [path.name for path in drawn] == [f"{name}_rooms_{index}.png" for name in ("LaSt", "Tiny") for index in "02"]
    with Image.open(drawn[0]) as picture:
        assert picture.size[0] > 1000


def test_a_benchmark_in_its_layout_and_whole_images(here, capsys, refused):
    """VOC20 ignores 0; a part of the set is only taken when asked for, and the record says so."""
    make_voc(here, {"a": [0, 1, 20, 255], "b": [0, 5, 5, 9]})
    flags = ("--dataset", "voc20", "--root", "VOC2012", *SMALL, *MODEL)
    assert "official set 1449" in refused(script.main, *CPU, *flags)
    (record,) = run(*flags, "--any-count", "--per-class")
    assert record["dataset"].startswith("VOC20 val, 40 px, sclip, crop 32, stride 20, ")
    assert record["dataset"].endswith(", 2 of 1449 images")
    assert record["config"]["num_classes"] == 20
    out = capsys.readouterr().out
    assert "occur nowhere and are left out" in out
    assert "aeroplane" in out
    shutil.rmtree("output")
    (here / "names.txt").write_text("sky; water\nship\ndog\nsand\n")
    flags = ("--class-names", "names.txt", "--short-side", "40", "--crop", "0", *SMALL[-2:])
    (record,) = run(*CUSTOM[:4], *flags, *MODEL)
    assert record["dataset"] == "rooms val, 40 px, sclip, crop 0, prompts 'a photo of a {}'"


@pytest.mark.parametrize(("protocol", "is_stretched_twice"), [("sclip", False), ("naclip", True)])
def test_scores_of_whole_images_are_stretched_as_the_protocol_does(here, protocol, is_stretched_twice):
    """NACLIP: to the image that the model sees, then to the annotation; SCLIP at once."""
    flags = ("--protocol", protocol, "--crop", "0", "--pamr", "off", "--prob-threshold", "0", "--zero-label", "class")
    args = script.main.build_parser().parse_args([*CPU, *CUSTOM, *SMALL, *MODEL, *flags])
    (argument,), device = parse_model_arguments(args.model), torch.device("cpu")
    clip, setting = load_clip_argument(argument, "fp32", device), choose_setting(args)
    segmenter = build_segmenter(args, setting, clip, device)
    image = torch.randint(0, 256, (3, 44, 70), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (found,) = segmenter([image], [(150, 97)])
    with torch.inference_mode():
        features, grid_hw = segmenter.dense(segmenter.normalise(image)[None])
        maps = (F.normalize(features, dim=-1) @ segmenter.text.T).transpose(1, 2).unflatten(2, grid_hw)
        at_image = F.interpolate(maps, size=(44, 70), mode="bilinear")
        stretched = [F.interpolate(each, size=(150, 97), mode="bilinear") for each in (at_image, maps)]
        twice, once = (torch.tensor(segmenter.rule.class_of_name)[each[0].argmax(dim=0)] for each in stretched)
    expected, other = (twice, once) if is_stretched_twice else (once, twice)
    # pixels where two names tie to within float32 may fall either way
    assert (found != expected).float().mean() < 2e-4 < (found != other).float().mean()


def test_any_photo_is_segmented_as_the_evaluation_does_and_upright(here, monkeypatch, capsys):
    photo, exif = Image.open("rooms/images/0.jpg"), Image.Exif()
    photo.save("upright.png")
    exif[0x0112] = 6  # to be turned by a quarter clockwise
    photo.transpose(Image.Transpose.ROTATE_90).save("turned.png", exif=exif)
    drawn, draw = [], photo_segmentation.draw_overlay
    monkeypatch.setattr(photo_segmentation, "draw_overlay", lambda *given: drawn.append(given) or draw(*given))
    flags = ["--image", "upright.png", "turned.png", *PHOTO, "--last-block", "naclip", "--gaussian-std", "2"]
    segment.main([*flags, "--model", "LaSt=open_clip:clip_tiny.json@clip_tiny.pt,pool=last,top_k=3"])
    names = {path.name for path in Path("output/segment").iterdir()}
    assert names == {f"{name}_{model}.png" for name in ("turned", "upright") for model in ("LaSt", "Tiny")}
    evaluated = [*CPU, *CUSTOM, *SMALL[:2], *SMALL[-2:], *MODEL, "--protocol", "sclip", *flags[-4:]]
    args, cpu = script.main.build_parser().parse_args(evaluated), torch.device("cpu")
    clip = load_clip_argument(parse_model_arguments(args.model)[0], "fp32", cpu)
    setting = replace(choose_setting(args), class_names=parse_vocabulary(PHOTO[1]))
    image = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
    (expected,) = build_segmenter(args, setting, clip, cpu)([resize_short_side(image, 40)], [image.shape[1:]])
    for _, pixels, label, found, classes, _ in drawn:  # the pooling takes no part
        assert (label, classes) == (None, ["ship", "dog", "table"])
        np.testing.assert_array_equal(pixels, np.array(photo))
        np.testing.assert_array_equal(found, expected)
    assert capsys.readouterr().out.startswith("Tiny, upright: ")


ERRORS = [
    (("--stride", "33"), "leave no gap, got 33"),
    (("--prob-threshold", "1.5"), "probability threshold must be in [0, 1)"),
    (("--zero-label", "class", "--prob-threshold", "0.1"), "and rooms has none"),
    (("--root", "nowhere"), "nowhere"),
    (("--templates", "a photo"), "prompt templates are"),
    (("--gaussian-std", "3"), "width of --last-block naclip, but the block is vanilla"),
    (("--last-block", "naclip", "--gaussian-std", "0"), "a width in patches above 0 (NACLIP: 5), got 0"),
    (("--model", "B=torchvision:resnet18@random"), "zero-shot needs a text tower"),
    (("--model", "B=open_clip:clip_tiny.json"), "no weights"),
    (("--dataset", "ade20k"), "--zero-label is for custom data"),
    (("--dataset", "voc21", "--zero-label", "class"), "it names 4 classes, the data has 21"),
]


PHOTO_ERRORS = [
    (("--vocabulary", " , "), "vocabulary ' , ' is empty; name the classes"),
    (("--vocabulary", "cat,,sky"), "entry 2 has an empty name"),
    (("--vocabulary", "none.txt"), "no class-name file at 'none.txt'"),
    (("--image", "rooms/classes.txt"), "photo rooms/classes.txt cannot be read: "),
    (("--image", "none.jpg"), "none.jpg"),
    (("--image", "rooms/images/0.jpg"), "two photos are called '0'"),
]


def test_errors_are_one_line(here, refused):
    for flags, message in PHOTO_ERRORS:
        assert message in refused(segment.main, *PHOTO, "--image", "rooms/images/0.jpg", *flags)
    command = (script.main, *CPU, *CUSTOM, *SMALL, *MODEL)
    for flags, message in ERRORS:
        assert message in refused(*command, *flags)
    Image.fromarray(np.full((80, 50), 9, dtype=np.uint8)).save("rooms/labels/0.png")
    assert "holds 9, which is no class" in refused(*command)
