"""The Point-in-Box loop and the model it measures: tokens to compare with, and refused sets of weights."""

import pytest
import timm
import torch
from point_in_box_protocol import count_patch_hits
from torchvision.models import VisionTransformer, resnet18

from last_vit import LaStPool, last_pool
from last_vit.dense import attach_last, choose_global_token, dense_batches, dense_forward
from last_vit.metrics import PointInBox, TopK
from last_vit.models import load_trained_model


def tiny_vit() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(32, 8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=4).eval()


@torch.no_grad()
def test_global_tokens():
    output = dense_forward(attach_last(tiny_vit(), top_k=2), torch.rand(2, 3, 32, 32))
    pool = LaStPool(top_k=5)
    assert choose_global_token(output, "trained", pool) is output.global_token
    assert choose_global_token(output, "cls", pool) is output.cls_token
    torch.testing.assert_close(choose_global_token(output, "last", pool), last_pool(output.patch_tokens, 5))
    torch.testing.assert_close(choose_global_token(output, "mean", pool), output.patch_tokens.mean(dim=1))
    with pytest.raises(ValueError, match="no class token"):
        choose_global_token(dense_forward(resnet18().eval(), torch.rand(1, 3, 32, 32)), "cls", pool)


def test_batches_come_back_with_their_dense_output():
    model, images = tiny_vit(), torch.randn(5, 3, 32, 32)
    batches = [{"image": part, "index": part.flatten(1)[:, 0], "name": "x"} for part in images.split(2)]
    expected, found = dense_forward(model, images).patch_tokens, []
    for output, batch in dense_batches(model, iter(batches), torch.device("cpu")):
        assert torch.is_grad_enabled()  # the caller's own mode
        assert not output.logits.requires_grad
        assert batch["name"] == "x"
        found.append((output.patch_tokens, batch["index"]))
    assert torch.allclose(torch.cat([tokens for tokens, _ in found]), expected, atol=1e-6)
    assert torch.equal(torch.cat([index for _, index in found]), images.flatten(1)[:, 0])


def test_loop_counts_what_has_a_box():
    boxes = torch.tensor([[0.0, 0.0, 32.0, 32.0]]).repeat(5, 1)
    boxes[1] = torch.nan
    batch = {
        "image": torch.rand(5, 3, 32, 32),
        "box_xyxy": boxes,
        "image_hw": torch.full((5, 2), 32),
        "label": torch.arange(5) % 4,
    }
    batches = [{name: value[part] for name, value in batch.items()} for part in (slice(0, 2), slice(2, 5))]
    point_in_box, top_k = PointInBox(32, 32), TopK()
    count_patch_hits(tiny_vit(), batches, torch.device("cpu"), point_in_box, top_k)
    metrics = {**top_k.compute(), **point_in_box.compute()}
    assert metrics["num_images"] == 4  # boxes; accuracy is over all five
    assert metrics["point_in_box"] == metrics["point_in_box_random"] == metrics["point_in_box_center"] == 100.0
    assert metrics["acc5"] == 100.0


def test_backbone_without_classifier(tmp_path):
    path = tmp_path / "backbone.pth"
    torch.save({"teacher": timm.create_model("test_vit", num_classes=0).state_dict()}, path)
    trained = load_trained_model("timm:test_vit", path)
    assert (trained.num_classes, trained.model.num_classes) == (None, 0)
    assert (trained.preprocessing.crop, trained.preprocessing.resize) == (160, 168)
