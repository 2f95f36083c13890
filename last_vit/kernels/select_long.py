"""Triton kernels that choose the best K of more patches than one block can hold, in a few passes over x.

No scores are stored. A pass makes them again and counts, per channel, how many reach each of seven thresholds; the
largest that at least K reach starts the next pass, whose thresholds lie eight times as close. The thresholds are taken
on the integers in the order of the scores, three bits a pass, so eleven passes always do; a channel is done as soon as
exactly K scores reach its threshold, and a block whose channels are all done returns at once. Only equal scores
leave more than K; then the first patches among them are kept. The number of launches depends on no data.

The letters are those of kernels/scores.py; what is kept is written as kernels/kept.py says.
"""

import triton
import triton.language as tl

from last_vit.kernels.kept import store_bits
from last_vit.kernels.scores import own_block, scores, split_of_patches, unordered
from last_vit.kernels.select import drop_last_equals

SHIFTS = (29, 26, 23, 20, 17, 14, 11, 8, 5, 2, 0)  # of the digit that a pass finds; the last overlaps the one before
NUM_THRESHOLDS = 7
LOWEST = -2_139_095_041  # what `ordered` makes of -inf


@triton.jit
def reaching(score: tl.tensor, base: tl.tensor, step: tl.tensor) -> tl.tensor:
    """How many of the scores [C, P] reach the threshold `step` above `base` [C]."""
    return tl.sum(tl.where(score >= unordered(base + step)[:, None], 1, 0), axis=1)


@triton.jit(do_not_specialize=["size", "k", "shift", "batch", "num_patches"])
def count_reaching(
    x_ptr: tl.tensor, taps_ptr: tl.tensor, base_ptr: tl.tensor, reach_ptr: tl.tensor, counts_ptr: tl.tensor,
    size: tl.tensor, k: tl.tensor, shift: tl.tensor, batch: tl.tensor, num_patches: tl.tensor, stride_b: tl.tensor,
    stride_n: tl.tensor, scale: tl.tensor, eps: tl.tensor, D: tl.constexpr, C: tl.constexpr, W: tl.constexpr,
    LEAD: tl.constexpr, P: tl.constexpr, PAPER: tl.constexpr,
) -> None:  # fmt: skip
    """Add to counts [7, B, D] how many scores reach base + (1 .. 7) << shift, for blocks that are not done.

    `size` is B * D. Grid (blocks of channels, walkers over the batch, splits of the patches).
    """
    channels, window, large, small = own_block(taps_ptr, C, W, LEAD, D)
    first, end = split_of_patches(num_patches, tl.num_programs(2), tl.program_id(2), P)
    for image in range(tl.program_id(1), batch, tl.num_programs(1)):
        image_ptr = x_ptr + tl.cast(image, tl.int64) * stride_b
        at = tl.cast(image, tl.int64) * D + channels
        if tl.max(tl.load(reach_ptr + at, mask=channels < D, other=0), axis=0) > k:
            base = tl.load(base_ptr + at, mask=channels < D, other=0)
            c1 = tl.zeros([C], tl.int32)
            c2, c3, c4, c5, c6, c7 = c1, c1, c1, c1, c1, c1
            for start in range(first, end, P):
                patches = start + tl.arange(0, P)
                score = scores(
                    image_ptr, stride_n, patches, end, window, channels, large, small, scale, eps, D, PAPER
                )  # fmt: skip
                c1 += reaching(score, base, 1 << shift)
                c2 += reaching(score, base, 2 << shift)
                c3 += reaching(score, base, 3 << shift)
                c4 += reaching(score, base, 4 << shift)
                c5 += reaching(score, base, 5 << shift)
                c6 += reaching(score, base, 6 << shift)
                c7 += reaching(score, base, 7 << shift)
            tl.atomic_add(counts_ptr + at, c1, mask=channels < D)
            tl.atomic_add(counts_ptr + size + at, c2, mask=channels < D)
            tl.atomic_add(counts_ptr + 2 * size + at, c3, mask=channels < D)
            tl.atomic_add(counts_ptr + 3 * size + at, c4, mask=channels < D)
            tl.atomic_add(counts_ptr + 4 * size + at, c5, mask=channels < D)
            tl.atomic_add(counts_ptr + 5 * size + at, c6, mask=channels < D)
            tl.atomic_add(counts_ptr + 6 * size + at, c7, mask=channels < D)


@triton.jit(do_not_specialize=["size", "k", "shift"])
def raise_base(
    base_ptr: tl.tensor, reach_ptr: tl.tensor, above_ptr: tl.tensor, counts_ptr: tl.tensor, size: tl.tensor,
    k: tl.tensor, shift: tl.tensor, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Raise each channel's base to the largest threshold that K scores reach, and clear the counts of the next pass.

    `reach` becomes the number of scores that reach the base, `above` that of the threshold after it: after the last
    pass of a channel that is not done, the scores greater than the base. All [B, D] int32, here flat. Grid (blocks,).
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    base = tl.load(base_ptr + at, mask=at < size, other=0)
    reach = tl.load(reach_ptr + at, mask=at < size, other=0)
    above = tl.load(above_ptr + at, mask=at < size, other=0)
    is_open = reach > k
    for number in range(1, 8):
        count = tl.load(counts_ptr + (number - 1) * size + at, mask=at < size, other=0)
        tl.store(counts_ptr + (number - 1) * size + at, tl.zeros([BLOCK], tl.int32), mask=at < size)
        is_reached = is_open & (count >= k)
        base += tl.where(is_reached, 1 << shift, 0)  # counts fall from one threshold to the next
        reach = tl.where(is_reached, count, reach)
        above = tl.where(is_open & (count < k), tl.maximum(above, count), above)
    tl.store(base_ptr + at, base, mask=at < size)
    tl.store(reach_ptr + at, reach, mask=at < size)
    tl.store(above_ptr + at, above, mask=at < size)


@triton.jit(do_not_specialize=["size", "k", "batch", "num_patches"])
def sum_kept(
    x_ptr: tl.tensor, taps_ptr: tl.tensor, base_ptr: tl.tensor, reach_ptr: tl.tensor, above_ptr: tl.tensor,
    equals_ptr: tl.tensor, sums_ptr: tl.tensor, kept_ptr: tl.tensor, size: tl.tensor, k: tl.tensor,
    batch: tl.tensor, num_patches: tl.tensor, stride_b: tl.tensor, stride_n: tl.tensor, scale: tl.tensor,
    eps: tl.tensor, D: tl.constexpr, C: tl.constexpr, W: tl.constexpr, LEAD: tl.constexpr, P: tl.constexpr,
    PAPER: tl.constexpr, COUNT_EQUALS: tl.constexpr,
) -> None:  # fmt: skip
    """Sum the kept values of each split into sums [splits, B, D] and write the kept bits.

    With COUNT_EQUALS instead, for blocks with equal scores to choose among: how many each split holds, into equals
    [splits, B, D]; the other call needs them to know how many the splits before its own have kept.
    Grid (blocks of channels, walkers over the batch, splits of the patches).
    """
    channels, window, large, small = own_block(taps_ptr, C, W, LEAD, D)
    first, end = split_of_patches(num_patches, tl.num_programs(2), tl.program_id(2), P)
    for image in range(tl.program_id(1), batch, tl.num_programs(1)):
        image_ptr = x_ptr + tl.cast(image, tl.int64) * stride_b
        at = tl.cast(image, tl.int64) * D + channels
        out = tl.program_id(2) * size + at
        threshold = unordered(tl.load(base_ptr + at, mask=channels < D, other=0))
        reach = tl.load(reach_ptr + at, mask=channels < D, other=0)
        is_crowded = tl.max(reach, axis=0) > k
        if COUNT_EQUALS:
            if is_crowded:
                equals = tl.zeros([C], tl.int32)
                for start in range(first, end, P):
                    patches = start + tl.arange(0, P)
                    score = scores(
                        image_ptr, stride_n, patches, end, window, channels, large, small, scale, eps, D, PAPER
                    )  # fmt: skip
                    equals += tl.sum(tl.where(score == threshold[:, None], 1, 0), axis=1)
                tl.store(equals_ptr + out, equals, mask=channels < D)
        else:
            room = tl.zeros([C], tl.int32) + num_patches  # for equals, from this split on
            if is_crowded:
                room = tl.where(reach > k, k - tl.load(above_ptr + at, mask=channels < D, other=0), room)
                for split in range(tl.program_id(2)):
                    before = tl.load(equals_ptr + split * size + at, mask=channels < D, other=0)
                    room = tl.where(reach > k, room - before, room)
            total = tl.zeros([C], tl.float32)
            for start in range(first, end, P):
                patches = start + tl.arange(0, P)
                score = scores(
                    image_ptr, stride_n, patches, end, window, channels, large, small, scale, eps, D, PAPER
                )  # fmt: skip
                if is_crowded:
                    room = tl.maximum(room, 0)
                    equals = tl.sum(tl.where(score == threshold[:, None], 1, 0), axis=1)
                    score = drop_last_equals(score, threshold, tl.maximum(equals - room, 0).to(tl.float32))
                    room -= equals
                is_kept = score >= threshold[:, None]
                mask = (patches < end)[None, :] & (channels < D)[:, None]
                rows = image_ptr + patches[None, :] * stride_n
                x = tl.load(rows + channels[:, None], mask=mask, other=0.0).to(tl.float32)
                total += tl.sum(tl.where(is_kept, x, 0.0), axis=1)
                store_bits(kept_ptr, image, is_kept, start, num_patches, channels, D, C, P)
            tl.store(sums_ptr + out, total, mask=channels < D)
