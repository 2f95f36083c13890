"""The low pass as a short convolution: the matrix of taps against the Fourier transform, in float64."""

import pytest
import torch

from last_vit.kernels.taps import MAX_REACH, low_pass_taps, split_taps, tap_matrix
from last_vit.names import VARIANTS
from last_vit.pooling import half_gain, low_pass

CPU = torch.device("cpu")


def fourier_low_pass(x, sigma, variant):
    gain = half_gain(x.shape[-1], sigma, variant, CPU)
    return torch.fft.irfft(torch.fft.rfft(x) * gain, n=x.shape[-1])


def matrix_low_pass(x, matrix):
    """What a kernel does, in float64: every block of 64 channels from its window, around the end."""
    num_channels = x.shape[-1]
    taps = matrix.pieces.double().sum(0) / matrix.factor
    blocks = []
    for first in range(0, num_channels, 64):
        window = (torch.arange(taps.shape[1]) + first - matrix.lead) % num_channels
        blocks.append(x[..., window] @ taps.T)
    return torch.cat(blocks, dim=-1)[..., :num_channels]


@pytest.mark.parametrize("num_channels", [1, 2, 45, 768, 769, 2048])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_matrix_is_the_low_pass(num_channels, variant, dtype):
    """The worst input, +-1 by the sign of each tap's error, moves x_hat by less than 1e-6."""
    sigma = num_channels**0.5
    impulses = torch.eye(num_channels, dtype=torch.float64)[:70]
    error = matrix_low_pass(impulses, tap_matrix(num_channels, sigma, variant, dtype, CPU))
    error -= fourier_low_pass(impulses, sigma, variant)
    assert error.abs().sum(dim=1).max() < 1e-6


def test_two_bfloat16_pieces_are_as_good_as_the_float32_transform():
    x = torch.randn(64, 768, generator=torch.Generator().manual_seed(0)).bfloat16().double()
    exact = fourier_low_pass(x, 768**0.5, "release")
    ours = matrix_low_pass(x, tap_matrix(768, 768**0.5, "release", torch.bfloat16, CPU)) - exact
    plain = low_pass(x.float()[None])[0].double() - exact
    assert ours.square().mean().sqrt() < 3 * plain.square().mean().sqrt()
    assert ours.abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_pieces_are_numbers_of_their_type(dtype):
    taps = low_pass_taps(768, 768**0.5, "release")
    pieces, factor = split_taps(taps, dtype)
    assert torch.equal(pieces.to(dtype).double(), pieces)
    if dtype == torch.float32:
        assert not (pieces.float().view(torch.int32) & 0x1FFF).any(), "TF32"
    assert pieces.isfinite().all()
    torch.testing.assert_close(pieces.sum(0) / factor, taps, rtol=1e-4, atol=1e-7)


def test_taps_are_cut_where_float32_no_longer_sees_them():
    assert len(low_pass_taps(768, 768**0.5, "release")) - 1 == 25
    full = torch.fft.irfft(half_gain(768, 768**0.5, "paper", CPU), n=768)
    kept = low_pass_taps(768, 768**0.5, "paper")
    assert 2 * full[len(kept) : 385].abs().sum() < 2**-25 * full.abs().sum()
    assert torch.equal(kept, full[: len(kept)])


@pytest.mark.parametrize(("num_channels", "sigma", "fits"), [(768, 8.0, True), (768, 6.0, False), (768, 300.0, False)])
def test_a_small_sigma_or_a_cut_gaussian_makes_the_taps_long(num_channels, sigma, fits):
    assert (len(low_pass_taps(num_channels, sigma, "release")) - 1 <= MAX_REACH) == fits
