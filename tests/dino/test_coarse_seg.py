"""Coarse segmentation by hand and against plain loops, and from the command line on synthetic VOC."""

import eval_coarse_segmentation as script
import pytest
import torch
from coarse_seg import CoarseSegmentation, SegmentationImages
from frozen_parts import records, refused

from last_vit.data.voc import VocSplit
from last_vit.dense import dense_forward
from last_vit.models import parse_model_argument
from last_vit.patch_scores import patch_score

CLASSES = torch.tensor([[0, 3, 3, 255], [0, 3, 5, 5]], dtype=torch.uint8)
OBJECTS = torch.tensor([[0, 1, 2, 255], [0, 1, 3, 3]], dtype=torch.uint8)
MODEL = "ViT=dino:vit_mini/16@random"


def plain_score(maps, labels):
    """Mean over regions of the best map's Jaccard index, pixel by pixel."""
    scores = []
    for region in sorted(set(labels.flatten().tolist()) - {0, 255}):
        best = 0.0
        for single in maps:
            both = either = 0
            for inside, label in zip(single.flatten().tolist(), labels.flatten().tolist(), strict=True):
                if label == 255:
                    continue
                both += inside and label == region
                either += inside or label == region
            best = max(best, both / either)
        scores.append(best)
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


def test_a_perfect_map_scores_one_whatever_it_says_of_void():
    for void in (False, True):
        perfect = (CLASSES > 0) & (CLASSES != 255)
        perfect[0, 3] = void
        assert CoarseSegmentation("union").update(perfect[None], CLASSES, OBJECTS) == 1.0


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


def test_errors_say_what_is_wrong():
    for maps in (torch.rand(1, 2, 4), torch.ones(1, 2, 2, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"maps must be bool \[M, H, W\] and both masks \[H, W\] of one size"):
            CoarseSegmentation("union").update(maps, CLASSES, OBJECTS)
    with pytest.raises(ValueError, match="zero images"):
        CoarseSegmentation("union").compute()


@pytest.fixture
def flags(synthetic_sets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fixed = ["--image-size", "64", "--num-workers", "0", "--device", "cpu"]
    return ["--voc-root", f"{synthetic_sets}/voc/VOC2012", *fixed]


def test_the_papers_rule_is_scored_pixel_by_pixel(flags, synthetic_sets):
    """The record equals a plain pass: squeeze, score above its mean, nearest patch, Jaccard."""
    script.main([*flags, "--model", MODEL, "--protocol", "union"])
    (record,) = records()
    trained = parse_model_argument(MODEL).load(image_size=64)
    split = VocSplit(synthetic_sets / "voc", "val", "Segmentation")
    images, metric = SegmentationImages(split, trained.preprocessing), CoarseSegmentation("union")
    for index in range(len(images)):
        with torch.inference_mode():
            output = dense_forward(trained.model, images[index]["image"][None])
        score = patch_score(output.patch_tokens, output.global_token)[0].reshape(output.grid_hw)
        class_mask, object_mask = split.class_mask(index), split.object_mask(index)
        rows, columns = (
            (torch.arange(length) + 0.5).mul(side / length).long()
            for length, side in zip(class_mask.shape, output.grid_hw, strict=True)
        )
        metric.update((score > score.mean())[rows][:, columns][None], class_mask, object_mask)
    assert record["metrics"]["miou"] == pytest.approx(metric.compute()["miou"], abs=1e-3)
    assert record["n_images"] == 7
    assert record["dataset"] == "VOC2012 val, 64 px, union, trained token"


def test_results_do_not_depend_on_the_batch_size(flags):
    found = []
    for size in ("1", "7"):
        rules = ["--rule", "score", "attention", "--batch-size", size, "--output", size, "--table"]
        script.main([*flags, "--model", MODEL, *rules])
        found.append({r["dataset"]: r["metrics"] for r in records("results") if r["name"].startswith(size)})
    assert len(found[0]) == 6
    assert found[0] == found[1]
    assert {record["row"] for record in records("results")} == {"ViT, score", "ViT, attention"}
    assert "VOC2012 val, 64 px, object, attention mass 0.6, best head" in found[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--model", "A=torchvision:resnet18@random", "--rule", "attention"), "no attention layer"),
        (("--model", MODEL, "--rule", "attention", "--mass", "1.5"), "mass is a share"),
        (("--model", MODEL, "--voc-split", "test"), "test"),
    ],
)
def test_errors_are_one_line(flags, capsys, more, message):
    error = refused(capsys, script.main, *flags, *more)
    assert "eval_coarse_segmentation.py: error: " in error
    assert message in error
