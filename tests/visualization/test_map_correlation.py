"""Correlation of two maps: against numpy image by image, pooled, and through the joint histogram."""

import numpy as np
import pytest
import torch
from patch_norms import MapCorrelation, bin_index, count_bins

EDGES = torch.linspace(-4, 4, 9, dtype=torch.float64)


def two_maps(num_images: int = 7, num_patches: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_images, num_patches, generator=generator)
    offset = 3 * torch.randn(num_images, 1, generator=generator)  # images differ, which the pooled value sees
    return x, 0.5 * x + torch.randn(num_images, num_patches, generator=generator) + offset


def test_both_correlations_against_numpy():
    x, y = two_maps()
    metric = MapCorrelation(EDGES, EDGES)
    for part_x, part_y in zip(x.split(3), y.split(3), strict=True):
        metric.update(part_x, part_y)
    found = metric.compute()
    per_image = [np.corrcoef(a, b)[0, 1] for a, b in zip(x.double().numpy(), y.double().numpy(), strict=True)]
    assert found["correlation"] == pytest.approx(np.mean(per_image), abs=1e-12)
    pooled = np.corrcoef(x.double().flatten().numpy(), y.double().flatten().numpy())[0, 1]
    assert found["correlation_pooled"] == pytest.approx(pooled, abs=1e-9)
    assert abs(found["correlation"] - found["correlation_pooled"]) > 0.05


def test_constant_maps_are_left_out_and_counted():
    x, y = two_maps()
    expected = MapCorrelation(EDGES, EDGES)
    expected.update(x[2:], y[2:])
    metric = MapCorrelation(EDGES, EDGES)
    assert metric.compute() == {}  # nothing counted yet
    metric.update(torch.cat([torch.full((1, 20), 27.7), x[1:]]), torch.cat([y[:1], torch.zeros(1, 20), y[2:]]))
    assert metric.compute()["num_constant_maps"] == 2
    assert metric.compute()["correlation"] == pytest.approx(expected.compute()["correlation"])


def test_rounding_is_no_variation():
    x, y = two_maps()
    metric = MapCorrelation(EDGES, EDGES)
    metric.update(27.7 * (1 + 1e-7 * x), y)  # as norms after a LayerNorm
    assert metric.compute() == {"num_constant_maps": 7}


def test_joint_histogram_against_numpy():
    x, y = two_maps()
    y = y.clamp(-3.9, 3.9)
    metric = MapCorrelation(EDGES, EDGES[::2].contiguous())
    for part_x, part_y in zip(x.split(2), y.split(2), strict=True):
        metric.update(part_x, part_y)
    expected = np.histogram2d(x.flatten().double(), y.flatten().double(), bins=(EDGES, EDGES[::2]))[0]
    x_edges, y_edges, counts = metric.joint_histogram()
    assert np.array_equal(counts.numpy(), expected)
    assert (len(x_edges), len(y_edges)) == (9, 5)


def test_values_outside_count_in_the_border_bins():
    values = torch.tensor([-99.0, -4.0, -3.0, 3.999, 4.0, 99.0])
    assert bin_index(values, EDGES).tolist() == [0, 0, 1, 7, 7, 7]
    assert count_bins(bin_index(values, EDGES), 8).tolist() == [2, 1, 0, 0, 0, 0, 0, 3]
