"""Keys and class attention of the last layer against the layer computed by hand in float64, and DINO's golden ones."""

import copy

import pytest
import torch
from dino_parts import golden, tiny_vit
from last_attention import find_attention_layer, last_attention
from torch import nn
from torchvision.models import VisionTransformer

from last_vit.dense import attach_last, dense_forward
from last_vit.dino_vit import DinoVisionTransformer

timm = pytest.importorskip("timm")
open_clip = pytest.importorskip("open_clip")

HEADS, PATCH = 3, 8


def randomised(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.eval()


def dino():
    return DinoVisionTransformer(img_size=32, patch_size=PATCH, embed_dim=24, depth=3, num_heads=HEADS)


def timm_vit(**kwargs):
    small = {"img_size": 32, "patch_size": PATCH, "embed_dim": 24, "depth": 2, "num_heads": HEADS, "num_classes": 5}
    return timm.models.vision_transformer.VisionTransformer(**small | kwargs)


HOSTS = {
    "dino with a pool": (lambda: attach_last(dino(), 0.5), 1),
    "timm": (timm_vit, 1),
    "timm with registers": (lambda: timm_vit(reg_tokens=4), 5),
    "timm with qk norm": (lambda: timm_vit(qk_norm=True), 1),
    "torchvision": (lambda: VisionTransformer(32, PATCH, 2, HEADS, 24, 48), 1),
    "open_clip": (lambda: open_clip.transformer.VisionTransformer(32, PATCH, 24, 2, HEADS, 2.0, output_dim=7), 1),
}


def by_hand(model, images, num_prefix):
    """Queries, keys, values [B, N, D] and the class token's attention [B, heads, N], from what the last layer reads."""
    model, seen = copy.deepcopy(model).double(), []
    layer = find_attention_layer(model)
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(images.double())
        handle.remove()
        tokens = seen[0]
        is_mha = isinstance(layer, nn.MultiheadAttention)
        if is_mha and not layer.batch_first:
            tokens = tokens.transpose(0, 1)
        weight, bias = (layer.in_proj_weight, layer.in_proj_bias) if is_mha else (layer.qkv.weight, layer.qkv.bias)
        bias = torch.zeros(len(weight)).double() if bias is None else bias
        width, rows = tokens.shape[2], []
        q, k, v = (tokens @ weight.T + bias).split(width, dim=2)
        for head in range(HEADS):
            part = slice(head * width // HEADS, (head + 1) * width // HEADS)
            query, keys = q[..., part], k[..., part]
            if not is_mha:
                query, keys = layer.q_norm(query), layer.k_norm(keys)
            logits = torch.einsum("bd,bnd->bn", query[:, 0], keys) / (width // HEADS) ** 0.5
            rows.append(logits.exp() / logits.exp().sum(1, keepdim=True))
    return *(part[:, num_prefix:] for part in (q, k, v)), torch.stack(rows, 1)[..., num_prefix:]


@pytest.mark.parametrize(("build", "num_prefix"), HOSTS.values(), ids=HOSTS)
def test_against_float64(build, num_prefix):
    model, images = randomised(build()), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        found = last_attention(model, images)
        plain = dense_forward(model, images)
        with torch.autocast("cpu", torch.bfloat16):
            rough = last_attention(model, images)
    for got, expected in zip(found[1:], by_hand(model, images, num_prefix), strict=True):
        torch.testing.assert_close(got, expected.float(), rtol=1e-4, atol=1e-5)
    assert found.keys.shape == (2, 16, 24)
    assert found.cls_attention.shape == (2, HEADS, 16)
    for got, expected in zip(found.output, plain, strict=True):
        torch.testing.assert_close(got, expected) if isinstance(got, torch.Tensor) else None
    layer = find_attention_layer(model)
    assert not layer._forward_pre_hooks
    assert isinstance(layer, nn.MultiheadAttention) or not layer.qkv._forward_hooks
    assert (rough.keys.dtype, rough.cls_attention.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(rough.cls_attention, found.cls_attention, rtol=0, atol=0.03)


def test_golden_attention():
    vectors, model = golden("dino_vit"), tiny_vit().eval()
    model.load_state_dict(golden("dino_vit_state"))
    with torch.no_grad():
        found = last_attention(model, vectors["native_in"]).cls_attention
    torch.testing.assert_close(found, vectors["native_last_selfattention"][:, :, 0, 1:], atol=1e-5, rtol=0)


def test_what_cannot_be_read_is_refused_and_leaves_no_hook():
    headless = randomised(timm_vit(class_token=False, global_pool="avg", fc_norm=False))
    with torch.no_grad():
        found = last_attention(headless, torch.rand(1, 3, 32, 32))
    assert (found.cls_attention, found.keys.shape) == (None, (1, 16, 24))
    model = randomised(dino())
    with pytest.raises(ValueError, match="multiples of the patch size"):
        last_attention(model, torch.rand(1, 3, 33, 32))
    assert not find_attention_layer(model).qkv._forward_hooks
    eva = timm.create_model("eva02_tiny_patch14_224", img_size=28, depth=1)
    for other, what in ((timm.create_model("test_resnet"), "no attention layer"), (eva, "EvaAttention")):
        with pytest.raises(ValueError, match=f"{what}.* The patch score works on every supported host"):
            last_attention(other.eval(), torch.rand(1, 3, 28, 28))
