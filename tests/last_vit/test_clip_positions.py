"""Resizing of position embeddings: three ways of one cubic, each against its definition or its source."""

import open_clip.model
import pytest
import torch
from clip_towers_parts import bicubic
from torch import nn

from last_vit.clip_dense import POSITIONS, resize_positions
from last_vit.clip_last_block import shadowed


def table(height, width, prefix=1, channels=5):
    generator = torch.Generator().manual_seed(height * width)
    return torch.randn(prefix + height * width, channels, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("how", ["sclip", "fvit"])
@pytest.mark.parametrize(("old", "new"), [((4, 4), (7, 3)), ((14, 14), (21, 32)), ((3, 5), (5, 3)), ((8, 8), (4, 16))])
@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_cubic_at_the_right_points(how, old, new, prefix):
    positions, guard = table(*old, prefix), 0.1 if how == "sclip" else 0.0
    found = resize_positions(positions[None], prefix, old, new, how)[0]
    steps = (old[0] / (new[0] + guard), old[1] / (new[1] + guard))
    expected = bicubic(positions[prefix:].reshape(*old, -1), new, steps).reshape(new[0] * new[1], -1)
    assert torch.equal(found[:prefix], positions[:prefix])
    torch.testing.assert_close(found[prefix:], expected)


def test_open_clip_is_what_open_clip_does():
    positions = table(4, 4).float()
    model = nn.Module()
    model.visual = nn.Module()
    model.visual.grid_size = (7, 3)
    weights = {"visual.positional_embedding": positions}
    open_clip.model.resize_pos_embed(weights, model)
    found = resize_positions(positions, 1, (4, 4), (7, 3), "open_clip")
    assert torch.equal(found, weights["visual.positional_embedding"])


@pytest.mark.parametrize("how", POSITIONS)
def test_the_same_grid_is_left_alone(how):
    positions = table(4, 4).half()
    assert resize_positions(positions, 1, (4, 4), (4, 4), how) is positions
    assert resize_positions(positions, 1, (4, 4), (5, 4), how).dtype == torch.float16


def test_bad_arguments():
    with pytest.raises(ValueError, match="sclip, fvit, open_clip"):
        resize_positions(table(4, 4), 1, (4, 4), (5, 5), "bilinear")
    with pytest.raises(ValueError, match="17 positions"):
        resize_positions(table(4, 4), 1, (4, 5), (5, 5))


def test_shadows_go_away_also_after_an_error():
    layer = nn.Linear(2, 2)
    weight, replaced = layer.weight, torch.ones(2, 2)
    layer.note = "mine"

    def fail():
        with shadowed(layer, weight=replaced, note="other", forward=lambda x: x):
            assert layer.weight is replaced
            assert (layer.note, layer(5)) == ("other", 5)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert layer.weight is weight
    assert layer.note == "mine"
    assert "forward" not in vars(layer)
