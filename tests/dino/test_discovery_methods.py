"""The methods' interface: what each reads of a forward pass, against the functions of object_discovery.py."""

import pytest
import torch
from discovery_methods import (
    METHODS,
    dino_seg_method,
    lost_method,
    patch_score_method,
    tokencut_method,
)
from last_attention import last_attention
from object_discovery import dino_seg_mask, lost_mask, patch_box, patch_score_mask, tokencut_mask

from last_vit.dense import dense_forward
from last_vit.dino_vit import DinoVisionTransformer
from last_vit.patch_scores import patch_score
from last_vit.pooling import LaStPool, last_pool

GRID, IMAGE_HW = (3, 4), [(24, 32), (20, 27)]


@pytest.fixture(scope="module")
def features():
    torch.manual_seed(0)
    model = DinoVisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
        return last_attention(model, torch.randn(2, 3, 24, 32))


def expected(features, name, i):
    if name == "lost":
        return lost_mask(features.keys[i], GRID, 5), True
    if name == "tokencut":
        return tokencut_mask(features.keys[i], GRID), True
    if name.startswith("dino-seg"):
        return dino_seg_mask(features.cls_attention[i, 1], GRID, name == "dino-seg"), name != "dino-seg"
    score = patch_score(features.output.patch_tokens, features.output.global_token)
    return patch_score_mask(score[i], GRID, name), True


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (lost_method(5), "lost"),
        (tokencut_method(), "tokencut"),
        (dino_seg_method(1), "dino-seg"),
        (dino_seg_method(1, as_published=False), "dino-seg mended"),
        (patch_score_method("peak", "trained", LaStPool(1)), "peak"),
        (patch_score_method("largest", "trained", LaStPool(1)), "largest"),
        (patch_score_method("all", "trained", LaStPool(1)), "all"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_method_reads_its_own(features, method, name):
    assert any(method.name.startswith(known) for known in METHODS)
    for i, found in enumerate(method.boxes(features, IMAGE_HW, 8)):
        patches, clip = expected(features, name, i)
        assert (found.patches.mask == patches.mask).all()
        assert found.box_xyxy == patch_box(patches.mask, 8, IMAGE_HW[i], clip)


def test_patch_score_needs_the_dense_output_alone(features):
    method = patch_score_method("peak", "trained", LaStPool(1))
    assert not method.needs_attention
    alone, both = (method.boxes(each, IMAGE_HW, 8) for each in (features.output, features))
    assert [found.box_xyxy for found in alone] == [found.box_xyxy for found in both]


@pytest.mark.parametrize("kind", ["cls", "mean", "last"])
def test_global_tokens(features, kind):
    output = features.output
    tokens = {"cls": output.cls_token, "mean": output.patch_tokens.mean(1), "last": last_pool(output.patch_tokens, 3)}
    method = patch_score_method("all", kind, LaStPool(3))
    found = method.boxes(output, IMAGE_HW, 8)
    score = patch_score(output.patch_tokens, tokens[kind])
    for i in range(2):
        assert (found[i].patches.mask == patch_score_mask(score[i], GRID, "all").mask).all()
    assert ("K=3" in method.protocol) == (kind == "last")


def test_what_cannot_be_read_is_said(features):
    with pytest.raises(
        ValueError, match=r"head 3, counted from 0, but the last attention layer has 3; .*--dino-seg-head"
    ):
        dino_seg_method(3).boxes(features, IMAGE_HW, 8)
    with pytest.raises(ValueError, match="no class token"):
        dino_seg_method(0).boxes(features._replace(cls_attention=None), IMAGE_HW, 8)
    small = DinoVisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=3).eval()
    with torch.no_grad():
        output = dense_forward(small, torch.randn(1, 3, 8, 16))
        with pytest.raises(ValueError, match="at least 3 patches"):
            tokencut_method().boxes(last_attention(small, torch.randn(1, 3, 8, 16)), [(8, 16)], 8)
    assert patch_score_method("peak", "trained", LaStPool(1)).boxes(output, [(8, 16)], 8)
