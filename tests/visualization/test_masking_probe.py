"""The masking probe: exact counts and pixels, against image-by-image loops, and its command."""

import math
from argparse import Namespace
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import evaluate_patch_hit
import numpy as np
import probe_masking
import pytest
import torch
from diagnostic_parts import IMAGENET, IMAGES, LAST, VIT, read_by_hand
from masking_probe import (
    CURVES,
    MaskedAccuracy,
    check_classifier,
    choose_patches,
    count_masked,
    mask_patches,
    random_scores,
    spread_over_classes,
)
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from last_vit import patch_score
from last_vit.data.imagenet import ImageNetDataset
from last_vit.dense import dense_forward
from last_vit.evaluation import eval_transform
from last_vit.models import parse_model_argument

CPU = torch.device("cpu")
NUM_IMAGES, NUM_CLASSES = 12, 3


def some_scores(num_images=5, num_patches=49, seed=0):
    return torch.randn(num_images, num_patches, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("num_patches", [1, 4, 10, 49, 50, 196])
def test_the_nearest_number_halves_up_and_bottom_completes_top(num_patches):
    """Also where scores tie."""
    score = some_scores(num_patches=num_patches).round()
    for percent in range(101):
        chosen = choose_patches(score, percent / 100, "top")
        exact = (Decimal(percent) * num_patches / 100).quantize(Decimal(1), ROUND_HALF_UP)
        assert chosen.dtype == torch.bool
        assert chosen.sum(dim=1).tolist() == [int(exact)] * 5, percent
        if exact * 100 == percent * num_patches:  # no half to round
            assert torch.equal(choose_patches(score, 1 - percent / 100, "bottom"), ~chosen)
    assert choose_patches(torch.zeros(1, 4), 0.5).tolist() == [[True, True, False, False]]


@pytest.mark.parametrize(("grid_hw", "image_hw"), [((3, 3), (32, 32)), ((7, 5), (50, 64)), ((13, 20), (31, 21))])
def test_masks_of_grids_that_do_not_divide(grid_hw, image_hw):
    """The patch that holds a pixel's centre, as torch's nearest-exact has it."""
    images = torch.randn(2, 3, *image_hw) + 9
    drop = torch.rand(2, math.prod(grid_hw), generator=torch.Generator().manual_seed(0)) < 0.5
    masked = mask_patches(images, drop, grid_hw)
    mask = F.interpolate(drop.unflatten(1, grid_hw)[:, None].double(), image_hw, mode="nearest-exact")
    assert torch.equal(masked, torch.where(mask.bool(), 0.0, images))


def test_random_scores_belong_to_the_image():
    together = random_scores([3, 0, 99_999], 64, seed=1)
    assert together.shape == (3, 64)
    for row, index in zip(together, (3, 0, 99_999), strict=True):
        assert torch.equal(random_scores([index], 64, seed=1)[0], row)
    assert not torch.equal(random_scores([3], 64, seed=2), together[:1])
    assert len(random_scores(torch.arange(100), 64, seed=0).unique(dim=0)) == 100


@pytest.fixture(scope="module")
def vit() -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=NUM_CLASSES)
    torch.nn.init.normal_(model.heads.head.weight)
    return model.eval()


@pytest.fixture(scope="module")
def samples() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "image": 3 * torch.randn(NUM_IMAGES, 3, 32, 32, generator=generator),
        "label": torch.randint(NUM_CLASSES, (NUM_IMAGES,), generator=generator),
        "index": torch.arange(100, 100 + NUM_IMAGES),
    }


def batches(samples, size, order=None):
    order = torch.arange(NUM_IMAGES) if order is None else order
    return [{name: values[part] for name, values in samples.items()} for part in order.split(size)]


def masked_accuracy(model, samples, size=NUM_IMAGES, order=None, **kwargs):
    accuracy = MaskedAccuracy(kwargs.pop("percents", (20, 50)))
    count_masked(model, batches(samples, size, order), CPU, accuracy, NUM_CLASSES, **kwargs)
    return accuracy.compute()


@torch.no_grad()
def by_hand(model, samples, percents, seed, patch=8):
    """One image, one patch, one pixel block at a time."""
    hits = {"top1": 0, **{f"top1_{curve}_{percent}": 0 for curve in CURVES for percent in percents}}
    for i in range(len(samples["image"])):
        image, label = samples["image"][i : i + 1], int(samples["label"][i])
        output = dense_forward(model, image)
        hits["top1"] += int(model(image).argmax()) == label
        score = patch_score(output.patch_tokens, output.global_token)[0].tolist()
        noise = random_scores([int(samples["index"][i])], 16, seed)[0].tolist()
        for percent in percents:
            kept = round(16 * percent / 100)
            for curve, values, largest in (("top", score, True), ("bottom", score, False), ("random", noise, True)):
                masked = image.clone()
                for place in sorted(range(16), key=lambda p: values[p], reverse=largest)[:kept]:
                    row, column = divmod(place, 4)
                    masked[:, :, patch * row :, patch * column :][:, :, :patch, :patch] = 0
                hits[f"top1_{curve}_{percent}"] += int(model(masked).argmax()) == label
    total = len(samples["image"])
    return {name: 100 * count / total for name, count in hits.items()} | {"num_images": total}


def test_masking_against_a_plain_loop(vit, samples):
    percents, seed = (10, 50), 3
    found = masked_accuracy(vit, samples, percents=percents, seed=seed)
    assert found == pytest.approx(by_hand(vit, samples, percents, seed))
    assert len(set(found.values())) > 2  # masks do change answers here


def test_batch_size_and_order_change_nothing(vit, samples):
    order = torch.randperm(NUM_IMAGES, generator=torch.Generator().manual_seed(5))
    assert masked_accuracy(vit, samples, 5, order) == masked_accuracy(vit, samples)


def seen_images(model, samples, **kwargs):
    """Everything that the model is shown."""
    seen = []
    hook = model.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    masked_accuracy(model, samples, **kwargs)
    hook.remove()
    return seen


def test_labels_do_not_choose_and_the_seed_moves_the_random_masks_only(vit, samples):
    seen = seen_images(vit, samples)
    assert len(seen) == 1 + 3 * 2
    other = seen_images(vit, {**samples, "label": (samples["label"] + 1) % NUM_CLASSES})
    assert all(map(torch.equal, seen, other))
    moved = [not torch.equal(a, b) for a, b in zip(seen, seen_images(vit, samples, seed=1), strict=True)]
    assert moved == [False] * 5 + [True] * 2  # whole, top, bottom, random


def test_the_command_against_the_loop(call, capsys):
    """The images of ImageNet's layout, their labels, the model's own head."""
    flags = ["--shares", "50", "--seed", "2", "--num-images", "6", "--dataset-name", "Mini", "--table"]
    records = call(probe_masking, *IMAGENET, *flags, models=(VIT, LAST))
    record = next(record for record in records if record["row"] == "ViT")
    trained = parse_model_argument(VIT).load(64, 72)
    dataset = ImageNetDataset("imagenet", "val", eval_transform(trained.preprocessing))
    chosen = spread_over_classes(dataset.labels, 6, 2)
    samples = [dataset[index] for index in chosen]
    loaded = {key: torch.as_tensor([sample[key] for sample in samples]) for key in ("label", "index")}
    loaded["image"] = torch.stack([sample["image"] for sample in samples])
    expected = by_hand(trained.model, loaded, (50,), 2, patch=16)
    assert {**record["metrics"], "num_images": record["n_images"]} == pytest.approx(expected, abs=1e-3)
    assert record["dataset"] == "Mini val, 64 px, 6 images by seed 2, trained token"
    assert (record["n_images"], record["config"]["seed"], record["table"]) == (6, 2, "masking_probe")
    printed = capsys.readouterr().out
    assert f"{record['metrics']['top1_top_50']:.1f}" in printed
    assert "top-1 in percent, 6 of 8 images of Mini val" in printed
    assert list(call.figures) == ["results/masking_probe.png"]


def test_a_subset_of_the_models_classes_has_the_numbers_of_its_mapping(call, here):
    """Two of three class folders, beside the mapping of all three: top-1 as of those images in the whole set."""
    (here / "subset/val").mkdir(parents=True)
    for name in ("n01", "n02"):
        (here / "subset/val" / name).symlink_to(here / "imagenet/val" / name)
    with pytest.raises(SystemExit):
        call(probe_masking, "--imagenet-root", "subset")
    (here / "subset/LOC_synset_mapping.txt").write_text("n00 a\nn01 b\nn02 c\n")
    answers = {}
    for path, image in zip(sorted(Path("imagenet/val").rglob("*.png")), read_by_hand(VIT), strict=True):
        if path.parent.name != "n00":
            boxes = IMAGES[int(path.stem)][2]
            answers[path.stem] = (int(image.output.logits.argmax()) == int(path.parent.name[2:]), len(boxes) == 1)
    (record,) = call(probe_masking, "--imagenet-root", "subset", "--shares", "50")
    assert record["n_images"] == len(answers)
    assert record["metrics"]["top1"] == pytest.approx(100 * np.mean([hit for hit, _ in answers.values()]), abs=1e-3)
    flags = ["--imagenet-label-dir", "imagenet/Annotations/CLS-LOC/val", "--max-box-area", "none"]
    (record,) = call(evaluate_patch_hit, "--imagenet-root", "subset", *flags)
    boxed = [hit for hit, has_box in answers.values() if has_box]
    assert record["metrics"]["acc1"] == pytest.approx(100 * np.mean(boxed), abs=1e-3)


def test_drawn_images_are_spread_over_the_classes():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 20))
    for num_images in (1, 10, 73, 200):
        chosen = spread_over_classes(labels, num_images, seed=1)
        counts = np.bincount(labels[chosen], minlength=10)
        assert len(set(chosen)) == num_images
        assert chosen == sorted(chosen)
        assert counts.max() - counts.min() <= 1
    assert spread_over_classes(labels, 50, seed=1) == spread_over_classes(labels, 50, 1)
    assert spread_over_classes(labels, 50, seed=2) != spread_over_classes(labels, 50, 1)
    few = np.array([4, 4, 4, 4, 9])
    assert sorted(few[spread_over_classes(few, 4, seed=0)].tolist()) == [4, 4, 4, 9]


def test_a_clip_tower_is_no_classifier():
    """Refused by its spec, before anything of it is loaded again."""
    argument = parse_model_argument("CLIP=open_clip:ViT-B-16@clip.pt")
    args = probe_masking.main.build_parser().parse_args(["--model", "x", "--imagenet-root", "root"])
    with pytest.raises(ValueError, match="model 'CLIP': a CLIP tower answers with an embedding, and the 100 classes"):
        check_classifier(argument, args, Namespace(classes=[""] * 100))
