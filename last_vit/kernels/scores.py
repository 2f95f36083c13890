"""What every selecting kernel starts with: x to stability scores, on chip, by Triton.

A program owns one block of 64 channels and reads, for some patches at a time, the window of channels around it. The low
pass is one matrix product with the taps (taps.py), which a program keeps while it walks from image to image.
The other half of a neighbour's window comes from the GPU's second-level cache, so x crosses its memory bus once.

Letters in shapes: C the block's channels, W its window, P patches at a time, D all channels.
"""

import triton
import triton.language as tl

from last_vit.pooling import TINY

_IS_INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))  # it knows no assembly and no bfloat16 products
_TINY = tl.constexpr(TINY)


@triton.jit
def own_block(taps_ptr: tl.tensor, C: tl.constexpr, W: tl.constexpr, LEAD: tl.constexpr, D: tl.constexpr) -> tl.tensor:
    """A program's channels [C], those that it reads [W], and the large and the small piece [C, W] of the tap matrix.

    It reads from LEAD before its first channel on, around the end.
    """
    first = tl.program_id(0) * C
    turns: tl.constexpr = (LEAD + D - 1) // D
    window = (first + turns * D - LEAD + tl.arange(0, W)) % D
    at = tl.arange(0, C)[:, None] * W + tl.arange(0, W)[None, :]
    return first + tl.arange(0, C), window, tl.load(taps_ptr + at), tl.load(taps_ptr + C * W + at)


@triton.jit
def low_pass(large_taps: tl.tensor, small_taps: tl.tensor, around: tl.tensor) -> tl.tensor:
    """Taps [C, W] times x [W, P] in float32; small products first, as a tensor core cuts off what is below its sum."""
    if around.dtype == tl.float32:  # a TF32 and the rest of it
        large = (around.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
        low_freq = tl.dot(large_taps, around - large, input_precision="tf32")
        low_freq = tl.dot(small_taps, large, low_freq, input_precision="tf32")
        return tl.dot(large_taps, large, low_freq, input_precision="tf32")
    if _IS_INTERPRETED:
        around, large_taps, small_taps = around.to(tl.float32), large_taps.to(tl.float32), small_taps.to(tl.float32)
    return tl.dot(large_taps, around, tl.dot(small_taps, around))


@triton.jit
def quotient(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """Quotient to 2e-7 for a normal b > 0, in two instructions in place of nine."""
    if _IS_INTERPRETED:
        return a / b
    return a * tl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=f,f", [b], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def scores(
    image_ptr: tl.tensor, stride_n: tl.tensor, patches: tl.tensor, end: tl.tensor, window: tl.tensor,
    channels: tl.tensor, large_taps: tl.tensor, small_taps: tl.tensor, scale: tl.tensor, eps: tl.tensor,
    D: tl.constexpr, PAPER: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """`pooling.raw_score` of the patches [P] of an image, float32 [C, P].

    It is +inf for NaN, which topk ranks first. From the patch `end` on nothing is read, and the score is NaN, which
    reaches no threshold.
    """
    rows, is_patch = image_ptr + patches[None, :] * stride_n, (patches < end)[None, :]
    around = tl.load(rows + window[:, None], mask=is_patch, other=0.0)
    x = tl.load(rows + channels[:, None], mask=is_patch & (channels < D)[:, None], other=0.0).to(tl.float32)
    low_freq = low_pass(large_taps, small_taps, around)
    low_freq *= scale
    distance = tl.abs(low_freq - x)
    if PAPER:
        score = quotient(low_freq, distance + eps)
    else:  # 0/0 is a zero
        score = quotient(x, tl.maximum(distance, _TINY, propagate_nan=tl.PropagateNan.ALL))
    return tl.where(is_patch, tl.minimum(score, float("inf")), float("nan"))  # minimum: of NaN and a number the number


@triton.jit
def ordered(score: tl.tensor) -> tl.tensor:
    """int32 in the order of float32 scores, equal where they are equal (-0 and 0 too)."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def unordered(key: tl.tensor) -> tl.tensor:
    """The score that `ordered` took to `key`."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
