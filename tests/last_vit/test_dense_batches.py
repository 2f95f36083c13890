"""The loop over batches: what dense_forward gives, without gradients, with everything else of the batch beside it."""

import torch
import torchvision

from last_vit.dense import dense_forward
from last_vit.dense_batches import dense_batches


def test_batches_come_back_with_their_dense_output():
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32).eval()
    images = torch.randn(5, 3, 32, 32)
    batches = [{"image": part, "index": part.flatten(1)[:, 0], "name": "x"} for part in images.split(2)]
    found = list(dense_batches(model, iter(batches), torch.device("cpu")))
    expected = dense_forward(model, images)
    assert torch.allclose(torch.cat([out.patch_tokens for out, _ in found]), expected.patch_tokens, atol=1e-6)
    assert not found[0][0].logits.requires_grad
    assert [batch["name"] for _, batch in found] == ["x"] * 3
    assert torch.equal(torch.cat([batch["index"] for _, batch in found]), images.flatten(1)[:, 0])


def test_the_caller_keeps_its_own_grad_mode_between_batches():
    model = torchvision.models.VisionTransformer(32, 8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32).eval()
    for _ in dense_batches(model, [{"image": torch.randn(1, 3, 32, 32)}], torch.device("cpu")):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
