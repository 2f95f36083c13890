"""The low pass as a short convolution: the matrix of taps against the Fourier transform, in float64."""

import pytest
import torch

from last_vit.kernels.taps import low_pass_taps, split_taps, tap_matrix
from last_vit.names import VARIANTS
from last_vit.pooling import half_gain

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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_pieces_are_numbers_of_their_type(dtype):
    pieces, _ = split_taps(low_pass_taps(768, 768**0.5, "release"), dtype)
    assert torch.equal(pieces.to(dtype).double(), pieces)
    if dtype == torch.float32:
        assert not (pieces.float().view(torch.int32) & 0x1FFF).any(), "TF32"


def test_taps_are_cut_where_float32_no_longer_sees_them():
    full = torch.fft.irfft(half_gain(768, 768**0.5, "paper", CPU), n=768)
    kept = low_pass_taps(768, 768**0.5, "paper")
    assert 2 * full[len(kept) : 385].abs().sum() < 2**-25 * full.abs().sum()
    assert torch.equal(kept, full[: len(kept)])
