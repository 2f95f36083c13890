"""Coarse segmentation by hand and against plain loops, and from the command line on synthetic VOC."""

import eval_coarse_segmentation as script
import pytest
import torch
from coarse_seg import CoarseSegmentation, SegmentationImages
from record_parts import read_records

from last_vit.data.voc import VocSplit
from last_vit.dense import dense_forward
from last_vit.models import parse_model_argument
from last_vit.patch_scores import patch_score

CLASSES = torch.tensor([[0, 3, 3, 255], [0, 3, 5, 5]], dtype=torch.uint8)
OBJECTS = torch.tensor([[0, 1, 2, 255], [0, 1, 3, 3]], dtype=torch.uint8)
MODEL = "ViT=dino:vit_mini/16@random"


def plain_score(maps, labels):
    """Mean over regions of the best map's Jaccard index, pixel by pixel; void pixels do not count."""
    pixels = [i for i, label in enumerate(labels.flatten().tolist()) if label != 255]
    scores = []
    for region in {int(labels.flatten()[i]) for i in pixels} - {0}:
        truth = {i for i in pixels if labels.flatten()[i] == region}
        found = [{i for i in pixels if single.flatten()[i]} for single in maps]
        scores.append(max(len(each & truth) / len(each | truth) for each in found))
    return sum(scores) / len(scores)


@pytest.mark.parametrize(
    ("protocol", "labels", "everything"),
    [
        ("union", torch.where(CLASSES > 0, 1, 0), 5 / 7),  # 7 known pixels, of which 5 are object
        ("class", CLASSES, (3 / 7 + 2 / 7) / 2),
        ("object", OBJECTS, (2 / 7 + 1 / 7 + 2 / 7) / 3),
    ],
)
def test_scores_are_those_of_a_plain_loop(protocol, labels, everything):
    labels = torch.where(CLASSES == 255, 255, labels)
    for seed in range(5):
        maps = torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(seed)) > 0.5
        assert CoarseSegmentation(protocol).update(maps, CLASSES, OBJECTS) == pytest.approx(plain_score(maps, labels))
    whole = torch.ones(1, 2, 4, dtype=torch.bool)
    assert CoarseSegmentation(protocol).update(whole, CLASSES, OBJECTS) == pytest.approx(everything)


def test_images_add_up_and_empty_ones_are_left_out():
    metric = CoarseSegmentation("object")
    half = torch.zeros(1, 2, 4, dtype=torch.bool)
    half[0, 0, 1] = True
    scores = [metric.update(half, CLASSES, OBJECTS), metric.update(torch.zeros_like(half), CLASSES, OBJECTS)]
    assert metric.update(half, CLASSES * 0, OBJECTS * 0) is None
    assert metric.update(half, CLASSES * 0 + 255, OBJECTS * 0 + 255) is None
    assert scores == [pytest.approx(0.5 / 3), 0.0]
    expected = {"miou": pytest.approx(100 * sum(scores) / 2), "num_images": 2, "num_empty": 2, "num_regions": 6}
    assert metric.compute() == expected
    with pytest.raises(ValueError, match="zero images"):
        CoarseSegmentation("union").compute()


@pytest.fixture
def flags(synthetic_sets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fixed = ["--image-size", "64", "--num-workers", "0", "--device", "cpu", "--model", MODEL]
    return ["--voc-root", f"{synthetic_sets}/voc/VOC2012", *fixed]


def test_the_papers_rule_pixel_by_pixel_whatever_the_batch_size(flags, synthetic_sets):
    """The record equals a plain pass: squeeze, score above its mean, nearest patch, Jaccard."""
    found = []
    for size in ("1", "7"):
        script.main([*flags, "--rule", "score", "attention", "--batch-size", size, "--output", size, "--table"])
        found.append({r["dataset"]: r["metrics"] for r in read_records("results") if r["name"].startswith(size)})
    assert found[0] == found[1]
    assert set(found[0]) == {
        f"VOC2012 val, 64 px, {protocol}, {detail}"
        for protocol in ("union", "class", "object")
        for detail in ("trained token", "attention mass 0.6, best head")
    }
    assert {(record["row"], record["n_images"]) for record in read_records("results")} == {
        ("ViT, score", 7),
        ("ViT, attention", 7),
    }
    trained = parse_model_argument(MODEL).load(image_size=64)
    split = VocSplit(synthetic_sets / "voc", "val", "Segmentation")
    images, metric = SegmentationImages(split, trained.preprocessing), CoarseSegmentation("union")
    for index in range(len(images)):
        with torch.inference_mode():
            output = dense_forward(trained.model, images[index]["image"][None])
        score = patch_score(output.patch_tokens, output.global_token)[0].reshape(output.grid_hw)
        masks = split.class_mask(index), split.object_mask(index)
        rows, columns = (
            (torch.arange(length) + 0.5).mul(side / length).long()
            for length, side in zip(masks[0].shape, output.grid_hw, strict=True)
        )
        metric.update((score > score.mean())[rows][:, columns][None], *masks)
    expected = pytest.approx(metric.compute()["miou"], abs=1e-3)
    assert found[0]["VOC2012 val, 64 px, union, trained token"]["miou"] == expected


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--model", "A=torchvision:resnet18@random", "--rule", "attention"), "no attention layer"),
        (("--rule", "attention", "--mass", "1.5"), "mass is a share"),
        (("--voc-split", "test"), "test"),
    ],
)
def test_errors_are_one_line(flags, refused, more, message):
    error = refused(script.main, *flags, *more)
    assert "eval_coarse_segmentation.py: error: " in error
    assert message in error


def test_masks_of_two_sizes_are_refused(flags, refused, monkeypatch):
    monkeypatch.setattr(VocSplit, "object_mask", lambda split, index: split.class_mask(index)[1:])
    assert "has class and object masks of different sizes, (40, 40) and (39, 40)" in refused(script.main, *flags)
