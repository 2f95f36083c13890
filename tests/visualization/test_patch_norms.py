"""Norm statistics: the histogram against exact values, the fitted cut-off on known shapes, the split, correlations."""

import functools
import itertools

import numpy as np
import pytest
import torch
from patch_norms import BINS_PER_DECADE, MAX_NORM, MIN_NORM, MapCorrelation, PatchNorms, merge_bins, token_norms

EDGES = torch.linspace(-4, 4, 9, dtype=torch.float64)
WIDTH = 10 ** (1 / BINS_PER_DECADE)  # of a bin, as a factor


def computed(norms: torch.Tensor, cutoff: float | None = None) -> dict[str, float]:
    metric = PatchNorms(cutoff)
    for part in norms.reshape(-1, 100).split(32):
        metric.update(part)
    return metric.compute()


@functools.cache
def shapes() -> dict[str, tuple[torch.Tensor, bool]]:
    """Distributions of 40 000 norms, and whether they have high-norm tokens."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(40_000, generator=generator)
    uniform = torch.rand(40_000, generator=generator)
    gamma = torch.stack([-torch.rand(40_000, generator=generator).clamp_min(1e-9).log() for _ in range(4)]).sum(0)
    two_percent = torch.arange(40_000) < 800
    dinov2 = torch.where(torch.arange(40_000) < 948, 150 + 350 * uniform, (45 + 18 * normal).clamp(5, 100))
    return {
        "normal": (50 + 15 * normal.clamp(-3), False),
        "log-normal": (20 * (0.3 * normal).exp(), False),
        "gamma": (gamma, False),  # norms of a map after a ReLU look so
        "uniform": (100 * uniform, False),
        "nearly equal": (27.7 + 1e-3 * normal, False),
        "2 % at 4 medians": (torch.where(two_percent, 40 + 3 * normal, 10 + 2 * normal.clamp(-3)), True),
        "2 % at 3 medians, others nearly equal": (torch.where(two_percent, 30.0, 10 + 1e-3 * normal), True),
        "2 % at 1.5 medians": (torch.where(two_percent, 15.0, 10 + 0.1 * normal), False),
        "0.3 % at 4 medians": (torch.where(torch.arange(40_000) < 120, 40.0, 10 + 2 * normal.clamp(-3)), False),
        "DINOv2-g as published": (dinov2, True),  # 2.37 % at 150 and above, the others below 100
        "DINOv2-g, broadest first mode": (torch.where(dinov2 >= 150, dinov2, 100 * uniform.flip(0)), True),
    }


@pytest.mark.parametrize("name", shapes())
def test_fitted_cutoff_on_known_shapes(name):
    norms, is_high = shapes()[name]
    found = computed(norms)
    assert found["high_norm"] == int(is_high)
    assert found["outlier_share"] == pytest.approx(100 * (norms.double() >= found["cutoff"]).double().mean().item())
    q1, median, q3 = norms.double().quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    assert max(q3 + 3 * (q3 - q1), 2 * median) == pytest.approx(found["cutoff"], rel=0.03)


def test_statistics_against_exact_ones():
    norms, dinov2 = shapes()["log-normal"][0], shapes()["DINOv2-g as published"][0]
    assert computed(dinov2)["outlier_share"] == computed(dinov2, cutoff=150.0)["outlier_share"] == pytest.approx(2.37)
    found = computed(norms)
    exact = np.quantile(norms.double(), [0.25, 0.5, 0.75])
    assert [found["norm_q1"], found["norm_median"], found["norm_q3"]] == pytest.approx(exact, rel=WIDTH - 1)
    assert found["norm_max"] == pytest.approx(norms.max().item(), rel=WIDTH - 1)
    assert (found["num_patches"], found["num_images"], found["num_outside"]) == (40_000, 400, 0)


def test_a_stated_cutoff_parts_exactly():
    norms = torch.tensor([[149.99999, 150.0, 150.00002, 10.0]])
    found = computed(norms.repeat(1, 25), cutoff=150.0)
    assert found["outlier_share"] == 50.0
    near = 123.456 * torch.tensor([1 - 1e-6, 1 + 1e-6])
    assert computed(near.repeat(50), cutoff=123.456)["outlier_share"] == 50.0


def test_values_outside_the_range_are_counted_in_the_border_and_reported():
    norms = torch.tensor([0.0, MIN_NORM / 2, MAX_NORM, 3 * MAX_NORM] + [1.0] * 96)
    metric = PatchNorms()
    metric.update(norms[None])
    edges, counts = metric.histogram()
    assert (counts[0], counts[-1], counts.sum()) == (2, 2, 100)
    assert (float(edges[0]), float(edges[-1])) == (pytest.approx(MIN_NORM), pytest.approx(MAX_NORM))
    assert metric.compute()["num_outside"] == 4


def test_foreground_split_by_hand():
    norms = torch.tensor([[1.0, 2.0, 3.0, 100.0], [4.0, 1.0, 1.0, 1.0], [9.0, 9.0, 9.0, 9.0]])
    foreground = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    known = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]], dtype=torch.bool)
    metric = PatchNorms(cutoff=8.0)
    metric.update(norms, is_foreground=foreground, is_known=known)
    found = metric.compute()
    assert found["norm_foreground"] == pytest.approx((1 + 2 + 4 + 36) / 7)
    assert found["norm_background"] == pytest.approx((3 + 100 + 1 + 1) / 4)
    assert found["norm_ratio"] == pytest.approx(found["norm_foreground"] / found["norm_background"])
    assert (found["foreground_higher"], found["num_split_images"]) == (50.0, 2)  # the third has no background
    assert found["outliers_in_background"] == pytest.approx(100 * 1 / 5)
    assert found["background_share"] == pytest.approx(100 * 4 / 11)
    assert found["outlier_share"] == pytest.approx(100 * 5 / 12)  # of all patches, known or not
    front, back = metric.split_histogram()
    assert (front.sum(), back.sum()) == (7, 4)


def test_any_split_of_the_data_gives_the_same_numbers():
    generator = torch.Generator().manual_seed(1)
    norms, score = 10 * torch.rand(12, 16, generator=generator), torch.rand(12, 16, generator=generator)
    foreground = torch.rand(12, 16, generator=generator) > 0.5
    results = []
    for size in (12, 5, 1):
        metric = PatchNorms()
        for part in zip(*(values.split(size) for values in (norms, score, foreground)), strict=True):
            metric.update(*part)
        results.append(metric.compute())
    for first, second in itertools.pairwise(results):
        assert first == pytest.approx(second, rel=1e-12)


def test_token_norms_of_half_precision_do_not_overflow():
    tokens = torch.full((1, 2, 64), 1e4, dtype=torch.float16)
    assert torch.allclose(token_norms(tokens), torch.full((1, 2), 8e4), rtol=1e-3)


def test_errors_name_what_is_wrong():
    for cutoff in (0.0, 1e9, float("nan")):
        with pytest.raises(ValueError, match="cutoff must be a norm between"):
            PatchNorms(cutoff)
    metric = PatchNorms()
    metric.update(torch.tensor([[1.0, float("nan"), float("inf"), 1.0]]), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="2 of 4 patch tokens have norms that are not finite"):
        metric.compute()
    dead = PatchNorms()
    dead.update(torch.tensor([[0.0, 0.0, 0.0, 5.0]]))
    with pytest.raises(ValueError, match="half of the patches have a norm below"):
        dead.compute()


def two_maps(num_images: int = 7, num_patches: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_images, num_patches, generator=generator)
    offset = 3 * torch.randn(num_images, 1, generator=generator)  # images differ, which the pooled value sees
    return x, 0.5 * x + torch.randn(num_images, num_patches, generator=generator) + offset


def test_both_correlations_and_the_joint_histogram_against_numpy():
    x, y = two_maps()
    metric = MapCorrelation(EDGES, EDGES[::2].contiguous())
    assert metric.compute() == {}  # nothing counted yet
    for part_x, part_y in zip(x.split(3), y.split(3), strict=True):
        metric.update(part_x, part_y)
    found, x, y = metric.compute(), x.double().numpy(), y.double().numpy()
    per_image = [np.corrcoef(a, b)[0, 1] for a, b in zip(x, y, strict=True)]
    assert found["correlation"] == pytest.approx(np.mean(per_image), abs=1e-12)
    assert found["correlation_pooled"] == pytest.approx(np.corrcoef(x.flatten(), y.flatten())[0, 1], abs=1e-9)
    assert abs(found["correlation"] - found["correlation_pooled"]) > 0.05
    x_edges, y_edges, counts = metric.joint_histogram()
    assert (len(x_edges), len(y_edges)) == (9, 5)
    inside = (x.flatten().clip(-3.9, 3.9), y.flatten().clip(-3.9, 3.9))  # values outside count in the border bins
    assert np.array_equal(counts.numpy(), np.histogram2d(*inside, bins=(EDGES, EDGES[::2]))[0])


def test_constant_maps_and_rounding_are_no_variation():
    x, y = two_maps()
    expected, metric, rounded = (MapCorrelation(EDGES, EDGES) for _ in range(3))
    expected.update(x[2:], y[2:])
    metric.update(torch.cat([torch.full((1, 20), 27.7), x[1:]]), torch.cat([y[:1], torch.zeros(1, 20), y[2:]]))
    assert metric.compute()["num_constant_maps"] == 2
    assert metric.compute()["correlation"] == pytest.approx(expected.compute()["correlation"])
    rounded.update(27.7 * (1 + 1e-7 * x), y)  # as norms after a LayerNorm
    assert rounded.compute() == {"num_constant_maps": 7}


def test_merged_bins_hold_what_the_fine_ones_hold():
    counts = torch.zeros(100)
    counts[[13, 40, 57]] = 1
    assert merge_bins(counts, 100).tolist() == list(range(13, 59))
    assert merge_bins(counts, 5).tolist() == [9, 18, 27, 36, 45, 54, 63]
    assert merge_bins(counts, 5, begin=70).tolist() == [10, 22, 34, 46, 58, 70, 82]
