"""Triton kernels that choose in one pass over x, the best patch of any number and the best K of at most 256.

Then one that spreads the gradient to what was kept. For K = 1 that is the patch's number, int32 [B, D]. For more, one
bit per value of x: patch n of channel d is bit n % 32 of word [b, n // 32, d]. That is 1/16 of x in bfloat16, written
and read once, where int16 indices would be K / N of x, and choosing again in the backward pass would read x once more
and keep it alive until then. The letters are those of kernels/scores.py.
"""

import triton
import triton.language as tl

from last_vit.kernels.scores import ordered, own_block, scores, unordered


@triton.jit
def better_patch(best: tl.tensor, best_at: tl.tensor, score: tl.tensor, patches: tl.tensor) -> tl.tensor:
    """Highest score [C] and its first patch, of those so far and of `score` [C, P]."""
    score = tl.where(score == score, score, float("-inf"))  # NaN is no patch
    top = tl.max(score, axis=1)
    top_at = tl.min(tl.where(score == top[:, None], patches[None, :], 0x7FFFFFFF), axis=1)
    return tl.maximum(best, top), tl.where(top > best, top_at, best_at)  # a later equal loses


@triton.jit
def split_of_patches(num_patches: tl.tensor, num_splits: tl.tensor, split: tl.tensor, P: tl.constexpr) -> tl.tensor:
    """First patch and end of one of `num_splits` parts, each a multiple of P patches."""
    per_split = tl.cdiv(tl.cdiv(num_patches, P), num_splits) * P
    return split * per_split, tl.minimum(num_patches, (split + 1) * per_split)


@triton.jit(do_not_specialize=["batch", "num_patches"])
def best_patch(
    x_ptr: tl.tensor, taps_ptr: tl.tensor, pooled_ptr: tl.tensor, kept_ptr: tl.tensor, packed_ptr: tl.tensor,
    batch: tl.tensor, num_patches: tl.tensor, stride_b: tl.tensor, stride_n: tl.tensor, scale: tl.tensor,
    eps: tl.tensor, D: tl.constexpr, C: tl.constexpr, W: tl.constexpr, LEAD: tl.constexpr, P: tl.constexpr,
    PAPER: tl.constexpr, IS_SPLIT: tl.constexpr,
) -> None:  # fmt: skip
    """K = 1: the patch of highest score and its value, [B, D] each, in one pass over x.

    Grid (blocks of channels, walkers over the batch, splits of the patches). With splits, score and patch go as one
    int64 to `packed` [B, D] by an atomic maximum; among equal scores the first patch is the largest.
    """
    channels, window, large, small = own_block(taps_ptr, C, W, LEAD, D)
    first, end = split_of_patches(num_patches, tl.num_programs(2), tl.program_id(2), P)
    for image in range(tl.program_id(1), batch, tl.num_programs(1)):
        image_ptr = x_ptr + tl.cast(image, tl.int64) * stride_b
        best = tl.full([C], float("-inf"), tl.float32)
        best_at = tl.zeros([C], tl.int32) + first
        for start in range(first, end, P):
            patches = start + tl.arange(0, P)
            score = scores(
                image_ptr, stride_n, patches, end, window, channels, large, small, scale, eps, D, PAPER
            )  # fmt: skip
            best, best_at = better_patch(best, best_at, score, patches)
        out = tl.cast(image, tl.int64) * D + channels
        if IS_SPLIT:
            key = ordered(best).to(tl.int64)
            tl.atomic_max(packed_ptr + out, (key << 32) | (0x7FFFFFFF - best_at), mask=channels < D)
        else:
            value = tl.load(image_ptr + best_at * stride_n + channels, mask=channels < D)
            tl.store(pooled_ptr + out, value, mask=channels < D)
            tl.store(kept_ptr + out, best_at, mask=channels < D)


@triton.jit
def scores_of_all(
    image_ptr: tl.tensor, stride_n: tl.tensor, num_patches: tl.tensor, window: tl.tensor, channels: tl.tensor,
    large: tl.tensor, small: tl.tensor, scale: tl.tensor, eps: tl.tensor, D: tl.constexpr, PAPER: tl.constexpr,
    P: tl.constexpr, FIRST: tl.constexpr, STEP: tl.constexpr, PART: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Scores [C, P] of patches FIRST + STEP * i, made PART patches at a time (fewer need less shared memory)."""
    if P <= PART:
        patches = FIRST + STEP * tl.arange(0, P)
        return scores(
            image_ptr, stride_n, patches, num_patches, window, channels, large, small, scale, eps, D, PAPER
        )  # fmt: skip
    else:  # every second patch, then the others, side by side again
        even = scores_of_all(
            image_ptr, stride_n, num_patches, window, channels, large, small, scale, eps, D, PAPER,
            P // 2, FIRST, 2 * STEP, PART,
        )  # fmt: skip
        odd = scores_of_all(
            image_ptr, stride_n, num_patches, window, channels, large, small, scale, eps, D, PAPER,
            P // 2, FIRST + STEP, 2 * STEP, PART,
        )  # fmt: skip
        return tl.reshape(tl.join(even, odd), [even.shape[0], P])


@triton.jit
def drop_last_equals(score: tl.tensor, threshold: tl.tensor, spare: tl.tensor) -> tl.tensor:
    """Make NaN of the last `spare` [C] scores that equal the threshold [C], in [C, P] scores of at most 256 patches."""
    P: tl.constexpr = score.shape[1]
    position = tl.arange(0, P)[None, :]
    end = tl.zeros_like(threshold).to(tl.int32) + P
    for turn in range(9):  # the first `end` that leaves no more than `spare` behind it, digit by digit
        earlier = end - (P >> turn)
        is_behind = (score == threshold[:, None]) & (position >= earlier[:, None])
        end = tl.where(tl.sum(tl.where(is_behind, 1.0, 0.0), axis=1) <= spare, earlier, end)
    return tl.where((score == threshold[:, None]) & (position >= end[:, None]), float("nan"), score)


@triton.jit
def threshold_of_k(score: tl.tensor, num_patches: tl.tensor, k: tl.tensor) -> tl.tensor:
    """Per channel a score [C] that K of the scores [C, P] reach, and how many do; more only where scores are equal.

    Bisection, on the integers in the order of the scores, between a bound that at least K scores reach and one that
    fewer do: 32 turns always do, for 196 random patches 17. NaN is no score.
    """
    low = ordered(tl.min(score, axis=1))
    high = ordered(tl.max(score, axis=1)) + 1
    reach = tl.zeros_like(low) + num_patches
    is_open = (reach > k) & (high > low + 1)
    while tl.max(is_open.to(tl.int32), axis=0) > 0:
        middle = (low & high) + ((low ^ high) >> 1)  # half of low + high, which may not fit in 32 bits
        count = tl.sum(tl.where(score >= unordered(middle)[:, None], 1.0, 0.0), axis=1).to(tl.int32)
        low = tl.where(is_open & (count >= k), middle, low)
        reach = tl.where(is_open & (count >= k), count, reach)
        high = tl.where(is_open & (count < k), middle, high)
        is_open = (reach > k) & (high > low + 1)
    return unordered(low), reach


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


@triton.jit(do_not_specialize=["k", "batch", "num_patches"])
def best_patches(
    x_ptr: tl.tensor, taps_ptr: tl.tensor, pooled_ptr: tl.tensor, kept_ptr: tl.tensor, k: tl.tensor,
    batch: tl.tensor, num_patches: tl.tensor, stride_b: tl.tensor, stride_n: tl.tensor, scale: tl.tensor,
    eps: tl.tensor, D: tl.constexpr, C: tl.constexpr, W: tl.constexpr, LEAD: tl.constexpr, P: tl.constexpr,
    PART: tl.constexpr, PAPER: tl.constexpr,
) -> None:  # fmt: skip
    """1 < K < N <= P: the mean over the K best patches [B, D] and the kept bits; x is read once, scores stay on chip.

    Of equal scores at the threshold the first patches are kept. Grid (blocks of channels, walkers over the batch).
    """
    channels, window, large, small = own_block(taps_ptr, C, W, LEAD, D)
    patches = tl.arange(0, P)
    for image in range(tl.program_id(1), batch, tl.num_programs(1)):
        image_ptr = x_ptr + tl.cast(image, tl.int64) * stride_b
        score = scores_of_all(
            image_ptr, stride_n, num_patches, window, channels, large, small, scale, eps, D, PAPER,
            P, 0, 1, PART,
        )  # fmt: skip
        threshold, reach = threshold_of_k(score, num_patches, k)
        if tl.max(reach, axis=0) > k:
            score = drop_last_equals(score, threshold, reach - k)
        is_kept = score >= threshold[:, None]
        mask = (patches < num_patches)[None, :] & (channels < D)[:, None]
        x = tl.load(image_ptr + patches[None, :] * stride_n + channels[:, None], mask=mask, other=0.0)
        pooled = tl.sum(tl.where(is_kept, x.to(tl.float32), 0.0), axis=1) / k
        tl.store(pooled_ptr + tl.cast(image, tl.int64) * D + channels, pooled, mask=channels < D)
        store_bits(kept_ptr, image, is_kept, 0, num_patches, channels, D, C, P)


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
