"""Components of patch tokens: against numpy's SVD, the same in a stream, colours in range, nothing undefined."""

import numpy as np
import pytest
import torch
import visualize_pca
from diagnostic_parts import FOLDER, MASKS, VIT, read_by_hand
from patch_pca import PatchMoments, fit_patch_pca


def sample(num_tokens: int = 300, num_channels: int = 12, offset: float = 0.0) -> torch.Tensor:
    """Tokens with variances well apart, and a mean of their own."""
    generator = torch.Generator().manual_seed(0)
    scales = 2.0 ** -torch.arange(num_channels)
    basis = torch.linalg.qr(torch.randn(num_channels, num_channels, generator=generator)).Q
    return torch.randn(num_tokens, num_channels, generator=generator) * scales @ basis + offset


@pytest.mark.parametrize(("num_tokens", "num_channels", "offset"), [(300, 12, 3.0), (5, 40, 3.0), (300, 12, 100.0)])
def test_components_against_numpys_svd(num_tokens, num_channels, offset):
    """The last with a mean of 100 times the spread of the first component."""
    tokens = sample(num_tokens, num_channels, offset)
    pca = fit_patch_pca(tokens)
    centred = tokens.double().numpy() - tokens.double().numpy().mean(axis=0)
    _, singular, rows = np.linalg.svd(centred, full_matrices=False)
    assert np.allclose(np.abs((pca.components.numpy() * rows[:3]).sum(axis=1)), 1, atol=1e-9)
    assert np.allclose(pca.explained.numpy(), (singular**2 / (singular**2).sum())[:3])
    assert np.allclose(pca.components @ pca.components.T, np.eye(3), atol=1e-9)
    assert np.allclose(pca.mean.numpy(), tokens.double().numpy().mean(axis=0))


def test_the_sign_is_fixed_by_the_largest_entry():
    tokens = sample()
    for data in (tokens, -tokens, tokens.flip(0)):
        components = fit_patch_pca(data).components
        assert (components.gather(1, components.abs().argmax(dim=1, keepdim=True)) > 0).all()
        assert torch.allclose(components, fit_patch_pca(tokens).components, atol=1e-9)


def test_a_stream_finds_the_components_of_memory():
    tokens = sample(offset=2.0)
    whole, moments = fit_patch_pca(tokens), PatchMoments(12)
    for part in (*tokens.split(64), tokens[:0]):
        moments.update(part)
    streamed = moments.fit()
    for name in ("mean", "components", "explained"):
        assert torch.allclose(getattr(streamed, name), getattr(whole, name), atol=1e-9)
    std = whole.project(tokens).std(dim=0, correction=0)
    assert torch.allclose(streamed.high, 2 * std)
    assert torch.allclose(streamed.low, -2 * std)


def test_colours_run_from_the_2nd_to_the_98th_percentile():
    tokens = sample(1000)
    pca = fit_patch_pca(tokens)
    rgb = pca.rgb(tokens)
    assert ((rgb == 0).sum(0) == 20).all()
    assert ((rgb == 1).sum(0) == 20).all()
    expected = (pca.project(tokens) - pca.low) / (pca.high - pca.low)
    inside = (expected > 0) & (expected < 1)
    assert torch.allclose(rgb[inside], expected[inside].float())
    assert torch.equal(pca.rgb(tokens.unflatten(0, (10, 100))), rgb.unflatten(0, (10, 100)))


def test_directions_without_variance_are_grey():
    line = torch.arange(20.0)[:, None] * torch.tensor([[1.0, 2.0, 0.0, 0.0]])
    pca = fit_patch_pca(line)
    rgb = pca.rgb(line)
    assert torch.equal(rgb[:, 1:], torch.full((20, 2), 0.5))
    assert rgb[:, 0].std() > 0.2
    assert pca.explained.tolist() == pytest.approx([1, 0, 0])
    equal = fit_patch_pca(torch.full((9, 5), 7.3))
    assert torch.equal(equal.rgb(torch.full((9, 5), 7.3)), torch.full((9, 3), 0.5))
    assert equal.explained.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("tokens", "match"),
    [
        (torch.zeros(2, 8), "at least 3 tokens, got 2"),
        (torch.full((9, 4), float("nan")), "not finite"),
    ],
)
def test_unusable_tokens_are_refused(tokens, match):
    with pytest.raises(ValueError, match=match):
        fit_patch_pca(tokens)


def colours_of(call, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What one row of the picture shows in the middle of each patch [N, 3], and whether that is a colour, bool [N]."""
    picture, shown = (
        torch.from_numpy(axes.images[0].get_array().data)[8::16, 8::16].flatten(0, 1)
        for axes in call.figures["results/pca.png"].axes[2 * row : 2 * row + 2]
    )
    grey = 0.35 * picture.mean(dim=1, keepdim=True)
    return shown, ((shown - grey).abs() > 1e-6).any(dim=1)


def test_a_fit_per_image_colours_the_annotated_patches(call):
    (record,) = call(visualize_pca, *MASKS, "--num-images", "8")
    explained = []
    for row, image in enumerate(read_by_hand(VIT)):
        (colours, is_coloured), mask = colours_of(call, row), image.front
        if mask.sum() < 3:
            assert not is_coloured.any()
            continue
        assert torch.equal(is_coloured, mask)
        pca = fit_patch_pca(image.tokens[mask])
        assert torch.allclose(colours[mask], pca.rgb(image.tokens[mask]), atol=1e-4)
        explained.append(pca.explained)
    num_fitted = len(explained)
    assert 0 < num_fitted < 8
    assert (record["n_images"], record["config"]["num_too_few_patches"]) == (num_fitted, 8 - num_fitted)
    expected = 100 * torch.stack(explained).mean(0)
    assert [record["metrics"][f"explained_{i}"] for i in (1, 2, 3)] == pytest.approx(expected.tolist(), abs=1e-2)


def test_a_fit_on_the_set_is_one_fit_for_all_images(call):
    (record,) = call(visualize_pca, *MASKS, "--fit", "set", "--num-images", "2", "--seed", "1")
    images = read_by_hand(VIT)
    tokens = torch.cat([image.tokens[image.front] for image in images])
    whole = fit_patch_pca(tokens)
    std = whole.project(tokens).std(dim=0, correction=0)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))[:2].sort().values
    for row, index in enumerate(order.tolist()):
        mask = images[index].front
        expected = (whole.project(images[index].tokens[mask]) / std / 4 + 0.5).clamp(0, 1)
        assert torch.allclose(colours_of(call, row)[0][mask], expected.float(), atol=1e-4)
    assert (record["n_images"], record["dataset"]) == (8, "imagenet/val, 64 px, fitted per set")


def test_without_annotations_the_patch_score_decides(call):
    (record,) = call(visualize_pca, *FOLDER, "--num-images", "8")
    for row, image in enumerate(read_by_hand(VIT)):
        assert torch.equal(colours_of(call, row)[1], image.score > image.score.mean())
    assert record["config"]["foreground"] == "patch score above its mean"
