"""The loops behind figure 2 against image-by-image versions: same scores, masks and answers, whatever the batch."""

import copy

import pytest
import torch
from masking import random_scores
from patch_foreground import patch_foreground
from patch_probes import CURVES, MASKED_PERCENTS, MaskedAccuracy, count_masked, count_patch_scores
from score_distribution import ScoreDistribution
from torchvision.models import VisionTransformer, resnet18

from last_vit import last_pool, patch_score
from last_vit.dense import attach_last, dense_forward
from last_vit.pooling import LaStPool

CPU = torch.device("cpu")
NUM_IMAGES, NUM_CLASSES = 12, 3


@pytest.fixture(scope="module")
def vit() -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=NUM_CLASSES)
    torch.nn.init.normal_(model.heads.head.weight)
    return model.eval()


@pytest.fixture(scope="module")
def samples() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    foreground = torch.zeros(NUM_IMAGES, 32, 32, dtype=torch.uint8)
    foreground[:, 5:24, 3:20] = 1
    foreground[::2, :, 25:] = 255
    return {
        "image": 3 * torch.randn(NUM_IMAGES, 3, 32, 32, generator=generator),
        "label": torch.randint(NUM_CLASSES, (NUM_IMAGES,), generator=generator),
        "index": torch.arange(100, 100 + NUM_IMAGES),
        "foreground": foreground,
    }


def batches(samples, size, order=None):
    order = torch.arange(NUM_IMAGES) if order is None else order
    return [{name: values[part] for name, values in samples.items()} for part in order.split(size)]


def masked_accuracy(model, samples, size=NUM_IMAGES, order=None, **kwargs):
    accuracy = MaskedAccuracy(kwargs.pop("percents", (20, 50)))
    count_masked(model, batches(samples, size, order), CPU, accuracy, NUM_CLASSES, **kwargs)
    return accuracy.compute()


@torch.no_grad()
def by_hand(model, samples, percents, seed):
    """One image, one patch, one pixel block at a time."""
    hits = {"top1": 0, **{f"top1_{curve}_{percent}": 0 for curve in CURVES for percent in percents}}
    for i in range(NUM_IMAGES):
        image, label = samples["image"][i : i + 1], int(samples["label"][i])
        output = dense_forward(model, image)
        hits["top1"] += int(model(image).argmax()) == label
        score = patch_score(output.patch_tokens, output.global_token)[0].tolist()
        noise = random_scores([int(samples["index"][i])], 16, seed)[0].tolist()
        for percent in percents:
            kept = round(16 * percent / 100)
            for curve, values, largest in (("top", score, True), ("bottom", score, False), ("random", noise, True)):
                masked = image.clone()
                for patch in sorted(range(16), key=lambda p: values[p], reverse=largest)[:kept]:
                    row, column = divmod(patch, 4)
                    masked[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 0
                hits[f"top1_{curve}_{percent}"] += int(model(masked).argmax()) == label
    return {name: 100 * count / NUM_IMAGES for name, count in hits.items()} | {"num_images": NUM_IMAGES}


def test_masking_against_a_plain_loop(vit, samples):
    percents, seed = (10, 50, 90), 3
    found = masked_accuracy(vit, samples, percents=percents, seed=seed)
    assert found == pytest.approx(by_hand(vit, samples, percents, seed))
    assert len(set(found.values())) > 3  # masks do change answers here


@pytest.mark.parametrize("size", [1, 5])
def test_batch_size_and_order_change_nothing(vit, samples, size):
    order = torch.randperm(NUM_IMAGES, generator=torch.Generator().manual_seed(size))
    assert masked_accuracy(vit, samples, size, order) == masked_accuracy(vit, samples)


def seen_images(model, samples, **kwargs):
    """Everything that the model is shown."""
    seen = []
    hook = model.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    try:
        masked_accuracy(model, samples, **kwargs)
    finally:
        hook.remove()
    return seen


def test_labels_do_not_choose_and_the_seed_moves_the_random_masks_only(vit, samples):
    seen = seen_images(vit, samples)
    assert len(seen) == 1 + 3 * 2
    other = seen_images(vit, {**samples, "label": (samples["label"] + 1) % NUM_CLASSES})
    assert all(map(torch.equal, seen, other))
    moved = [not torch.equal(a, b) for a, b in zip(seen, seen_images(vit, samples, seed=1), strict=True)]
    assert moved == [False] * 5 + [True] * 2  # whole, top, bottom, random


def test_default_shares_take_28_passes(vit, samples):
    assert len(seen_images(vit, samples, percents=MASKED_PERCENTS)) == 28


def test_token_chooses_the_ranking(vit, samples):
    shown = {kind: seen_images(vit, samples, global_token=kind) for kind in ("trained", "cls", "mean", "last")}
    assert all(map(torch.equal, shown["trained"], shown["cls"]))
    assert not torch.equal(shown["mean"][1], shown["cls"][1])
    assert not torch.equal(shown["last"][1], shown["cls"][1])


def test_patch_scores_against_a_plain_loop(vit, samples):
    distribution = ScoreDistribution()
    count_patch_scores(vit, batches(samples, 5), CPU, distribution, "last", LaStPool(top_k=3))
    alone = ScoreDistribution()
    for i in range(NUM_IMAGES):
        with torch.no_grad():
            patches = dense_forward(vit, samples["image"][i : i + 1]).patch_tokens
        score = patch_score(patches, last_pool(patches, top_k=3))
        alone.update(score, *patch_foreground(samples["foreground"][i : i + 1], (4, 4)))
    assert distribution.compute() == pytest.approx(alone.compute(), abs=1e-3)


def test_trained_token_is_the_attached_pool(vit, samples):
    found = []
    for model, token in ((attach_last(copy.deepcopy(vit), top_k=2), "trained"), (vit, "last")):
        distribution = ScoreDistribution()
        count_patch_scores(model, batches(samples, 4), CPU, distribution, token, LaStPool(top_k=2))
        found.append(distribution.compute())
    assert found[0] == pytest.approx(found[1], abs=1e-3)


def test_errors(vit, samples):
    for percents in ((), (50, 50), (0,), (100,)):
        with pytest.raises(ValueError, match=r"different numbers in \[1, 99\]"):
            MaskedAccuracy(percents)
    with pytest.raises(ValueError, match="answers with 3 numbers, the images have 10 classes"):
        count_masked(vit, batches(samples, 4), CPU, MaskedAccuracy(), num_classes=10)
    convnet = resnet18(num_classes=NUM_CLASSES).eval()
    with pytest.raises(ValueError, match="no class token"):
        count_patch_scores(convnet, batches(samples, 4), CPU, ScoreDistribution(), "cls")
    with pytest.raises(ValueError, match="no class token"):
        count_masked(convnet, batches(samples, 4), CPU, MaskedAccuracy(), NUM_CLASSES, "cls")


def test_a_convnet_with_one_patch_has_nothing_to_split(samples):
    distribution = ScoreDistribution()
    count_patch_scores(resnet18(num_classes=NUM_CLASSES).eval(), batches(samples, 4), CPU, distribution)
    with pytest.raises(ValueError, match="no image shows both object and background"):
        distribution.compute()
