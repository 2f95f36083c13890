"""PAMR against a loop over pixels and neighbours in float64, and what it must leave alone."""

import numpy as np
import pytest
import torch
from pamr import RefinedMaps


def plain_pamr(image, maps, num_steps, dilations):
    """Pixel by pixel, neighbour by neighbour."""
    image, maps = image.double().numpy(), maps.double().numpy()
    _, height, width = image.shape
    ring = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]

    def places(y, x, with_centre):
        for d in dilations:
            for dy, dx in ring:
                if with_centre or dy or dx:
                    yield min(max(y + d * dy, 0), height - 1), min(max(x + d * dx, 0), width - 1)

    weights = {}
    for y in range(height):
        for x in range(width):
            spread = np.std([image[:, j, i] for j, i in places(y, x, True)], axis=0, ddof=1)
            logits = np.array(
                [
                    np.mean(-np.abs(image[:, y, x] - image[:, j, i]) / (1e-8 + 0.1 * spread))
                    for j, i in places(y, x, False)
                ]
            )
            weights[y, x] = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    for _ in range(num_steps):
        refined = np.zeros_like(maps)
        for (y, x), weight in weights.items():
            for share, (j, i) in zip(weight, places(y, x, False), strict=True):
                refined[:, y, x] += share * maps[:, j, i]
        maps = refined
    return torch.from_numpy(maps)


@pytest.mark.parametrize(("num_steps", "dilations"), [(3, (2,)), (2, (1, 4)), (1, (8, 16))])
def test_it_is_the_plain_version(num_steps, dilations):
    generator = torch.Generator().manual_seed(0)
    image, maps = torch.rand(3, 9, 12, generator=generator), torch.randn(4, 9, 12, generator=generator)
    found = RefinedMaps(maps, image, num_steps, dilations)[:]
    torch.testing.assert_close(found.double(), plain_pamr(image, maps, num_steps, dilations), rtol=1e-4, atol=1e-5)


def test_names_do_not_touch_each_other_and_constants_stay():
    image, maps = torch.rand(3, 20, 24), torch.randn(5, 20, 24)
    maps[2] = 0.7
    refined = RefinedMaps(maps, image)
    together = refined[:]
    for index in range(5):
        torch.testing.assert_close(refined[[index]][0], together[index])
    torch.testing.assert_close(together[2], maps[2])
    assert not torch.equal(together[0], maps[0])
