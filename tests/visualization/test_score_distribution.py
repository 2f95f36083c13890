"""The numbers of figure 2a against plain loops in float64; what says nothing about objects scores at chance."""

import math

import pytest
import torch
import visualize_patch_score_distribution
from diagnostic_parts import LAST, MASKS, VIT, read_by_hand
from score_distribution import TOP_PERCENTS, ScoreDistribution

from last_vit import last_pool
from last_vit.patch_scores import patch_score

N = 37


def some_scores(num_images=12, seed=0, levels=None):
    """Scores, objects and what is known; with `levels`, scores of so many values, which tie."""
    generator = torch.Generator().manual_seed(seed)
    score = torch.rand(num_images, N, generator=generator) * 2 - 1
    if levels is not None:
        score = (score * levels).round() / levels
    is_foreground, is_known = (torch.rand(num_images, N, generator=generator) < share for share in (0.4, 0.8))
    return score, is_foreground & is_known, is_known


def measured(*parts):
    distribution = ScoreDistribution()
    distribution.update(*parts)
    return distribution.compute()


def by_hand(score, is_foreground, is_known):
    """All that `compute` returns, pair by pair and patch by patch."""
    won = pairs = 0.0
    found = dict.fromkeys(["auroc", "background_share", *(f"background_top_{p}" for p in TOP_PERCENTS)], 0.0)
    normalised = {True: [], False: []}
    for row, front, known in zip(score.double().tolist(), is_foreground.tolist(), is_known.tolist(), strict=True):
        patches = [(s, f) for s, f, k in zip(row, front, known, strict=True) if k]
        low, high = min(patches)[0], max(patches)[0]
        objects, others = [s for s, f in patches if f], [s for s, f in patches if not f]
        wins = sum((a > b) + (a == b) / 2 for a in objects for b in others)
        found["auroc"] += wins / (len(objects) * len(others))
        found["background_share"] += len(others) / len(patches)
        for percent in TOP_PERCENTS:
            # ties at random: the expected share is the mean over both extreme orders of what ties, in proportion
            kept = math.ceil(percent * len(patches) / 100)
            limit = sorted((s for s, _ in patches), reverse=True)[kept - 1]
            above = [f for s, f in patches if s > limit]
            tied = [f for s, f in patches if s == limit]
            background = above.count(False) + (kept - len(above)) * tied.count(False) / len(tied)
            found[f"background_top_{percent}"] += background / kept
        for s, f in patches:
            normalised[f].append((s - low) / (high - low))
    for a in normalised[True]:
        for b in normalised[False]:
            won, pairs = won + (a > b) + (a == b) / 2, pairs + 1
    return {key: 100 * value / len(score) for key, value in found.items()} | {"auroc_pooled": 100 * won / pairs}


@pytest.mark.parametrize("levels", [None, 3])
def test_against_a_plain_loop(levels):
    parts = some_scores(levels=levels)
    found, expected = measured(*parts), by_hand(*parts)
    assert found.pop("auroc_pooled") == pytest.approx(expected.pop("auroc_pooled"), abs=0.02)
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-9)
    assert found["num_images"] == 12


def test_constant_scores_say_exactly_nothing():
    _, is_foreground, is_known = some_scores()
    distribution = ScoreDistribution(num_bins=4)
    distribution.update(torch.full((12, N), 0.3), is_foreground, is_known)
    found = distribution.compute()
    assert (found["auroc"], found["auroc_pooled"], found["num_constant"]) == (50, 50, 12)
    for percent in TOP_PERCENTS:
        assert found[f"background_top_{percent}"] == pytest.approx(found["background_share"], abs=1e-9)
    assert all(density.tolist() == [0, 0, 4, 0] for density in distribution.histograms()[1:])


def test_scores_of_unknown_patches_change_nothing():
    score, is_foreground, is_known = some_scores()
    elsewhere = score.clone()
    elsewhere[~is_known] = torch.tensor([torch.nan, 9.0, -9.0, torch.inf]).repeat(N * 3)[: (~is_known).sum()]
    assert measured(elsewhere, is_foreground | ~is_known, is_known) == measured(score, is_foreground, is_known)


def test_permutation_scale_and_batches_change_nothing():
    score, is_foreground, is_known = some_scores(levels=8)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(4))
    expected = measured(score, is_foreground, is_known)
    assert measured(score[:, order], is_foreground[:, order], is_known[:, order]) == expected
    levels = 2.0 ** torch.arange(-6, 6)[:, None]  # powers of two: exact
    assert measured(score * levels, is_foreground, is_known) == expected
    for size in (1, 5):
        distribution = ScoreDistribution()
        for part in zip(*(values.split(size) for values in (score, is_foreground, is_known)), strict=True):
            distribution.update(*part)
        assert distribution.compute() == pytest.approx(expected, abs=1e-9)


def test_images_without_one_of_the_two_are_counted_apart():
    score, is_foreground, is_known = some_scores(num_images=5)
    both = measured(score[:2], is_foreground[:2], is_known[:2])
    is_known[2] = False
    is_foreground[2] = False
    is_foreground[3] = False
    is_foreground[4] = is_known[4]
    found = measured(score, is_foreground, is_known)
    assert found == both | {"num_unknown": 1, "num_no_foreground": 1, "num_no_background": 1}
    assert found["num_images"] == 2


def test_histograms_are_densities_of_what_they_say():
    score = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0], [-1.0, 1.0, 0.0, 9.0, 0.0]])
    is_foreground = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 0, 0, 0]], dtype=torch.bool)
    is_known = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)
    distribution = ScoreDistribution(num_bins=4)
    distribution.update(score, is_foreground, is_known)
    edges, foreground, background = distribution.histograms()
    assert edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert foreground.tolist() == [0, 0, 1, 3]  # 0.5, 0.75, 1 and 1
    assert background.tolist() == [2, 1, 1, 0]  # 0, 0.25; 0, 0.5
    for density in (foreground, background):
        assert float((density * edges.diff()).sum()) == pytest.approx(1)


def test_errors():
    score, is_foreground, is_known = some_scores()
    with pytest.raises(ValueError, match="12 images without a known patch"):
        measured(score, is_foreground, is_known & False)
    for value in (torch.nan, torch.inf):
        score[3, is_known[3].nonzero()[0]] = value
        with pytest.raises(ValueError, match="1 images have scores that are NaN or infinite"):
            measured(score, is_foreground, is_known)


@pytest.mark.parametrize(("text", "token"), [(VIT, "trained"), (VIT, "last"), (LAST, "mean")])
def test_the_command_against_pairs_counted_by_hand(call, text, token, capsys):
    flags = ["--dataset-name", "mini", "--global-token", token]
    (record,) = call(visualize_patch_score_distribution, *MASKS, *flags, models=(text,))
    parts = []
    for image in read_by_hand(text):
        tokens = image.tokens[None]
        query = {"mean": tokens.mean(1), "trained": image.output.global_token, "last": last_pool(tokens, 1)}[token]
        if 0 < image.front.sum() < 16:
            parts.append((patch_score(tokens, query)[0], image.front, image.known))
    expected = by_hand(*(torch.stack(part) for part in zip(*parts, strict=True)))
    for name in ("auroc", "background_top_10", "background_share"):
        assert record["metrics"][name] == pytest.approx(expected[name], abs=1e-3)
    words = "last K=1 release" if token == "last" else token  # noqa: S105
    assert (record["dataset"], record["n_images"]) == (f"mini, 64 px, {words} token", len(parts))
    assert (record["config"]["num_no_foreground"], record["config"]["objects"]) == (1, "masks")
    printed = capsys.readouterr().out
    assert all(word in printed for word in (f"{expected['auroc']:.1f}", "1 no object patch", "written results/"))
