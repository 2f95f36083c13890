"""Vote statistics against plain loops, and the properties that make them readable: uniform votes give a lift of 1."""

import pytest
import torch
from vote_statistics import LEVELS, VoteStatistics, best_inside, vote_levels

from last_vit import last_select, vote_count

GRID, K, D = (3, 4), 2, 24
N = GRID[0] * GRID[1]


def some_votes(num_images=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return vote_count(last_select(torch.randn(num_images, N, D, generator=generator), K), N)


def some_objects(num_images=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    is_foreground, is_known = (torch.rand(num_images, N, generator=generator) < share for share in (0.4, 0.8))
    return is_foreground & is_known, is_known


def by_hand(votes, is_foreground, is_known):
    """Everything that `compute` returns, image by image."""
    seen, tops, position = [], [], torch.zeros(N)
    above = torch.stack([votes > level * votes.amax(dim=1, keepdim=True) for level in LEVELS])
    for image, (row, front, known) in enumerate(zip(votes.double(), is_foreground, is_known, strict=True)):
        position += row / row.sum() / len(votes)
        if 0 < front.sum() < known.sum():
            seen.append(image)
            tied = known & (row == row[known].max())
            tops.append(float(front[tied].double().mean()))
    front, known = is_foreground[seen], is_known[seen]
    inside, uniform = float(votes[seen][front].sum() / votes[seen][known].sum()), float(front.sum() / known.sum())
    shown = {f"vote_area_{100 * level:g}": mask for level, mask in zip(LEVELS, above, strict=True)}
    return {
        **{name: 100 * float(mask.double().mean()) for name, mask in shown.items()},
        **{f"{name}_inside": 100 * float(front[mask[seen] & known].double().mean()) for name, mask in shown.items()},
        "position_peak": float(position.max()) * N,
        "num_images": len(votes),
        "votes_inside": 100 * inside,
        "votes_inside_uniform": 100 * uniform,
        "votes_lift": inside / uniform,
        "top_vote_inside": 100 * sum(tops) / len(tops),
        "num_object_images": len(seen),
    }


def statistics(*parts, sizes=(8,), grid_hw=GRID):
    counted = VoteStatistics(grid_hw)
    for part in zip(*(values.split(sizes) for values in parts), strict=True):
        counted.update(*part)
    return counted


@pytest.mark.parametrize("level", [0.1, 0.2, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("dtype", [torch.long, torch.float32])
def test_a_vote_at_the_level_is_not_above_it(level, dtype):
    tenths = torch.arange(1, 300)[:, None]
    votes = torch.cat([10 * tenths, round(10 * level) * tenths, round(10 * level) * tenths + 1], dim=1).to(dtype)
    assert vote_levels(votes, (level,))[:, 0].int().unique(dim=0).tolist() == [[1, 0, 1]]


def test_levels_of_no_votes():
    assert not vote_levels(torch.zeros(1, 4, dtype=torch.long)).any()


@pytest.mark.parametrize("sizes", [(8,), (1,) * 8, (3, 5)])
def test_against_a_loop_however_it_is_split(sizes):
    votes, (is_foreground, is_known) = some_votes(), some_objects()
    is_foreground[2] = False  # an image without object, and one without background: neither says anything
    is_foreground[5] = is_known[5]
    is_known[6] = False
    is_foreground[6] = False
    counted = statistics(votes, is_foreground, is_known, sizes=sizes)
    expected = by_hand(votes, is_foreground, is_known)
    assert expected["num_object_images"] == 5
    assert counted.compute() == pytest.approx(expected)
    frequency = counted.frequency()
    assert frequency.shape == GRID
    assert frequency.sum().item() == pytest.approx(1)
    torch.testing.assert_close(frequency.flatten(), votes.double().mean(dim=0) / (K * D))


def test_all_patches_kept_is_uniform():
    """K = N: no position preferred, and the object gets exactly its share of the patches."""
    votes = vote_count(last_select(torch.randn(4, N, D), 1.0), N)
    is_foreground, is_known = some_objects(4)
    counted = statistics(votes, is_foreground, is_known, sizes=(4,))
    found = counted.compute()
    torch.testing.assert_close(counted.frequency(), torch.full(GRID, 1 / N, dtype=torch.float64))
    assert (found["votes_lift"], found["position_peak"]) == (pytest.approx(1), pytest.approx(1))
    assert found["votes_inside"] == pytest.approx(found["votes_inside_uniform"])
    assert found["vote_area_50"] == found["vote_area_20"] == 100
    assert found["vote_area_50_inside"] == pytest.approx(found["votes_inside_uniform"])


def test_without_objects_only_what_needs_none():
    votes, (_, is_known) = some_votes(), some_objects()
    expected = {"vote_area_50", "vote_area_30", "vote_area_20", "position_peak", "num_images"}
    assert statistics(votes, torch.zeros_like(is_known), is_known).compute().keys() == expected
    unseen = torch.tensor([[0, 0, 9, 0]])  # every vote on an unknown patch: no share of anything
    front, known = torch.tensor([[True, False, False, False]]), torch.tensor([[True, True, False, True]])
    assert statistics(unseen, front, known, sizes=(1,), grid_hw=(2, 2)).compute().keys() == expected


def test_the_best_patch_does_not_depend_on_the_order_of_patches():
    """Votes are whole numbers that tie: the patches at the maximum share the hit."""
    draw = torch.Generator().manual_seed(0)
    votes = torch.randint(4, (5, 2, 30), generator=draw).float()
    inside, known = torch.rand(2, 5, 30, generator=draw) < 0.6
    found, order = best_inside(votes, inside & known, known), torch.randperm(30, generator=draw)
    assert torch.equal(best_inside(votes[:, :, order], (inside & known)[:, order], known[:, order]), found)
    best = [known[0] & (row == row[known[0]].max()) for row in votes[0]]
    assert found[0].tolist() == pytest.approx([float(inside[0][each].float().mean()) for each in best])
