"""The cache gives what the tower gave, computes an image once, knows changed images, and stays within its bound."""

import torch
from fvit.frozen_clip import ClipFeatureCache


class Counting:
    """Two maps per image, and how many images were computed."""

    def __init__(self):
        self.images = 0

    def __call__(self, images):
        self.images += len(images)
        return images * 2, images[:, :, ::2, ::2] + 1


def test_computes_each_image_once():
    cache, compute = ClipFeatureCache(10, torch.float32), Counting()
    images = torch.randn(4, 3, 8, 8)
    for batch in (images[:2], images[1:3], images[:4]):
        maps = cache.get(batch, compute)
        for ours, expected in zip(maps, (batch * 2, batch[:, :, ::2, ::2] + 1), strict=True):
            assert torch.equal(ours, expected)
    assert compute.images == 4
    assert (cache.hits, cache.misses, len(cache)) == (4, 4, 4)


def test_a_changed_image_is_another_image():
    cache, compute = ClipFeatureCache(10, torch.float32), Counting()
    image = torch.randn(1, 3, 8, 8)
    for view in (image, image.flip(3), image[..., :4]):
        assert torch.equal(cache.get(view, compute)[0], view * 2)
    assert compute.images == 3


def test_the_first_images_stay():
    cache, compute = ClipFeatureCache(2, torch.float32), Counting()
    images = torch.randn(5, 3, 8, 8)
    for _ in range(3):
        for image in images:
            assert torch.equal(cache.get(image[None], compute)[0], image[None] * 2)
    assert len(cache) == 2
    assert compute.images == 2 + 3 * 3


def test_bfloat16_is_the_same_at_the_first_step_and_later():
    cache = ClipFeatureCache(4, torch.bfloat16)
    image = torch.randn(1, 3, 8, 8)
    first, second = (cache.get(image, Counting())[0] for _ in range(2))
    assert torch.equal(first, second)
    assert first.dtype == torch.float32
    torch.testing.assert_close(first, image * 2, rtol=1e-2, atol=1e-2)


def test_one_image_twice_in_a_batch():
    cache, image = ClipFeatureCache(1, torch.float32), torch.randn(1, 3, 8, 8)
    maps = cache.get(torch.cat([image, image]), Counting())
    assert torch.equal(maps[0][0], maps[0][1])
    assert len(cache) == 1
