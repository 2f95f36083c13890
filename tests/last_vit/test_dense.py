"""Reading models densely: the tokens that patches are compared with, and the loop of every diagnostic."""

import pytest
import torch
from torchvision.models import VisionTransformer, resnet18

from last_vit import LaStPool, last_pool
from last_vit.dense import attach_last, choose_global_token, dense_batches, dense_forward


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
