"""Triton kernels for what a selection kept: written as bits, read for the gradient or as a list of patches.

For K = 1 the kept patch is its number, int32 [B, D]. For more, one bit per value of x: patch n of channel d is bit
n % 32 of word [b, n // 32, d]. That is 1/16 of x in bfloat16, written and read once, where int16 indices would be K / N
of x, and choosing again in the backward pass would read x once more and keep it alive until then.
"""

import triton
import triton.language as tl


@triton.jit
def store_bits(
    kept_ptr: tl.tensor, image: tl.tensor, is_kept: tl.tensor, start: tl.tensor, num_patches: tl.tensor,
    channels: tl.tensor, D: tl.constexpr, C: tl.constexpr, P: tl.constexpr,
) -> None:  # fmt: skip
    """Pack booleans [C, P] of the patches from `start` (a multiple of 32) on into words [B, cdiv(N, 32), D]."""
    bit = (tl.full([32], 1, tl.int32) << tl.arange(0, 32))[None, None, :]
    words = tl.sum(tl.where(tl.reshape(is_kept, [C, P // 32, 32]), bit, 0), axis=2)
    word = start // 32 + tl.arange(0, P // 32)
    num_words = tl.cdiv(num_patches, 32)
    at = (tl.cast(image, tl.int64) * num_words + word[None, :]) * D + channels[:, None]
    tl.store(kept_ptr + at, words, mask=(word < num_words)[None, :] & (channels < D)[:, None])


@triton.jit(do_not_specialize=["num_patches", "k"])
def spread_gradient(
    grad_ptr: tl.tensor, kept_ptr: tl.tensor, out_ptr: tl.tensor, num_patches: tl.tensor, k: tl.tensor,
    D: tl.constexpr, IS_BITS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Gradient [B, D] / K to the kept positions of [B, N, D], zeros elsewhere. Grid (blocks x words of patches, B)."""
    num_blocks: tl.constexpr = (D + BLOCK - 1) // BLOCK
    image = tl.program_id(1).to(tl.int64)
    word = tl.program_id(0) // num_blocks
    channels = tl.program_id(0) % num_blocks * BLOCK + tl.arange(0, BLOCK)
    bit = tl.arange(0, 32)
    patches = word * 32 + bit
    grad = tl.load(grad_ptr + image * D + channels, mask=channels < D, other=0.0).to(tl.float32) / k
    if IS_BITS:
        words = tl.load(kept_ptr + (image * tl.cdiv(num_patches, 32) + word) * D + channels, mask=channels < D, other=0)
        is_kept = ((words[None, :] >> bit[:, None]) & 1) == 1
    else:
        is_kept = tl.load(kept_ptr + image * D + channels, mask=channels < D, other=-1)[None, :] == patches[:, None]
    out = (image * num_patches + patches[:, None]) * D + channels[None, :]
    mask = (patches < num_patches)[:, None] & (channels < D)[None, :]
    tl.store(out_ptr + out, tl.where(is_kept, grad[None, :], 0.0), mask=mask)


@triton.jit(do_not_specialize=["num_patches", "k"])
def list_kept(
    kept_ptr: tl.tensor, index_ptr: tl.tensor, num_patches: tl.tensor, k: tl.tensor,
    D: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Kept bits -> int64 [B, K, D] patches in rising order. Grid (blocks of channels, B)."""
    image = tl.program_id(1).to(tl.int64)
    channels = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    rank = tl.zeros([BLOCK], tl.int64)
    num_words = tl.cdiv(num_patches, 32)
    for word in range(num_words):
        words = tl.load(kept_ptr + (image * num_words + word) * D + channels, mask=channels < D, other=0)
        for bit in range(32):
            is_kept = (words >> bit) & 1
            patch = tl.zeros([BLOCK], tl.int64) + word * 32 + bit
            tl.store(index_ptr + (image * k + rank) * D + channels, patch, mask=is_kept == 1)
            rank += is_kept
