"""The low pass as a short convolution along the channels: its taps, and the matrix that the CUDA kernels multiply by.

Multiplying the spectrum by the even gain g is a circular convolution with t = IDFT(g), real and even. For a Gaussian of
std sigma bins, t is a Gaussian of std D / (2 pi sigma) channels (4.4 at D = 768), so all but a few taps lie below the
resolution of float32. They are computed here in float64 and cut there.

Tensor cores want a matrix and narrow numbers. The matrix: 64 neighbouring outputs read one window of inputs, and the
matrix from window to outputs is the same everywhere along the channels. The numbers: each tap becomes the sum of two of
x's own type (TF32 for float32). Two bfloat16 hold 16 bits only, but a common factor is free (the kernel divides by it),
and a factor searched for makes the two-piece sums of all taps nearly exact at once: at D = 768 they change x_hat by at
most 3.2e-7 times max |x|, in root mean square by 9e-8 of that of x, where the float32 FFT is off by 4e-8.
"""

from functools import cache, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from last_vit.pooling import half_gain

BLOCK_CHANNELS = 64  # outputs of one matrix: the height of Hopper's matrix instruction
_CUT = 2.0**-26  # all taps beyond the reach sum up to less than this share of all taps
# Window width -> channels of it before the first output. 32 channels on each side are enough for the default sigma up
# to D = 1,200, 96 up to D = 10,000; 32 is also a whole cache sector, so that windows start at aligned addresses.
_WINDOWS = {128: 32, 256: 96}
MAX_REACH = max(_WINDOWS.values())  # taps to each side
_NUM_FACTORS = 1 << 14


class TapMatrix(NamedTuple):
    """The low pass of one block of channels as a matrix."""

    pieces: Tensor  # [2, 64, window] in the type of x, the large first; sum / factor takes a window to its block
    factor: float
    lead: int  # channels of the window before the first output; the window wraps around the channels


@lru_cache(maxsize=64)
@unset_fake_temporarily()  # it may be asked for while a graph is traced
def low_pass_taps(num_channels: int, sigma: float, variant: str) -> Tensor:
    """Taps of offset 0 to the reach R, float64 [R + 1]; t(-j) = t(j), except that offset D / 2 counts once."""
    taps = torch.fft.irfft(half_gain(num_channels, sigma, variant, torch.device("cpu")), n=num_channels)
    half = taps[: num_channels // 2 + 1]
    size = half.abs()
    dropped = 2 * (size.sum() - size.cumsum(0))  # by a cut after offset j
    reach = int((dropped > _CUT * taps.abs().sum()).sum())
    return half[: reach + 1]


@cache  # a CUDA graph holds the addresses of these matrices, so none may ever be freed
@unset_fake_temporarily()
def tap_matrix(num_channels: int, sigma: float, variant: str, dtype: torch.dtype, device: torch.device) -> TapMatrix:
    """The matrix for tokens of D channels and one of the types bfloat16, float16 and float32."""
    half = low_pass_taps(num_channels, sigma, variant)
    reach = len(half) - 1
    window = min(width for width, lead in _WINDOWS.items() if lead >= reach)
    offset = torch.arange(window) - _WINDOWS[window] - torch.arange(BLOCK_CHANNELS)[:, None]
    counts = (offset.abs() <= reach) & (2 * offset != -num_channels)
    pieces, factor = split_taps(half, dtype)
    matrix = torch.where(counts, pieces[:, offset.abs().clamp(max=reach)], 0.0)
    with torch.inference_mode(False):  # it may be made inside inference mode and used outside
        return TapMatrix(matrix.to(device, dtype, copy=True), factor, _WINDOWS[window])


def split_taps(taps: Tensor, dtype: torch.dtype) -> tuple[Tensor, float]:
    """`factor * taps` [R + 1] as sums of two numbers of a type, float64 [2, R + 1], the large first; and the factor."""
    # float16 lacks small numbers, so the largest tap goes near its largest number; for the others any scale is as good.
    lift = 2.0 ** int(torch.log2(2.0**14 / taps.abs().max())) if dtype == torch.float16 else 1.0
    factors = lift * (1 + torch.arange(_NUM_FACTORS, dtype=torch.float64) / _NUM_FACTORS)
    scaled = factors[:, None] * taps
    large = _rounded(scaled, dtype)
    small = _rounded(scaled - large, dtype)
    sides = torch.full_like(taps, 2.0)
    sides[0] = 1.0
    error = (scaled - large - small).abs() @ sides / factors
    best = int(error.argmin())
    return torch.stack([large[best], small[best]]), float(factors[best])


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """float64 to the nearest number that a matrix product of `dtype` takes as it is: TF32 for float32."""
    if dtype != torch.float32:
        return values.to(dtype).double()
    bits = values.float().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).double()  # TF32 has 13 bits fewer
