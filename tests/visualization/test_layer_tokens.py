"""Tokens after every block, on every host: the last ones through the host's own norm are dense_forward's."""

import open_clip
import pytest
import timm
import torch
from host_parts import HOSTS, IMAGES, TINY_CLIP, TINY_TIMM, Host, build_host
from layer_tokens import count_layers, layer_tokens
from open_clip.transformer import VisionTransformer as ClipViT
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn

from last_vit.adapters import find_adapter
from last_vit.dense import attach_last, dense_forward


@pytest.fixture(autouse=True)
def _inference():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def sequence_first_clip() -> nn.Module:
    """A tower whose blocks get and return [1 + N, B, D], as open_clip's Transformer also knows them."""
    tower = ClipViT(**TINY_CLIP)
    tower.transformer = open_clip.transformer.Transformer(16, 2, 2, mlp_ratio=2.0, batch_first=False)
    return tower


def build(name: str) -> nn.Module:
    with torch.inference_mode(False), torch.no_grad():
        return build_host(name)


def num_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("name", [*HOSTS, "open_clip-sequence-first"])
def test_layers_are_what_the_next_block_and_the_final_norm_get(name, monkeypatch):
    monkeypatch.setitem(HOSTS, "open_clip-sequence-first", Host(sequence_first_clip, "cls"))
    model, seen = build(name), []
    expected, blocks, before = dense_forward(model, IMAGES), find_adapter(model).blocks(model), num_hooks(model)
    with blocks.modules[1].register_forward_pre_hook(lambda _, args: seen.append(args[0])):
        tokens = layer_tokens(model, IMAGES)
    assert num_hooks(model) == before
    for found, wanted in zip(tokens.output, expected, strict=True):
        assert found is wanted or (torch.equal(found, wanted) if isinstance(found, torch.Tensor) else found == wanted)
    has_final_norm = name != "CLIPForImageClassification"
    assert (len(tokens.layers), tokens.has_final_norm) == (2, has_final_norm) == count_layers(model)
    assert {layer.shape for layer in tokens.layers} == {(4, 16, 16)}
    received = seen[0][0] if isinstance(seen[0], list) else seen[0]  # DINOv3's are lists
    received = received if blocks.batch_first else received.transpose(0, 1)
    assert torch.equal(tokens.layers[0], received[:, -16:])
    norms = [module for path, module in model.named_modules() if path.endswith(("layernorm", "norm", "ln_post", ".ln"))]
    ends = [norm(tokens.layers[-1]) for norm in norms if isinstance(norm, nn.LayerNorm)] if has_final_norm else []
    ends = ends or [tokens.layers[-1]]
    assert any(torch.allclose(end, expected.patch_tokens, atol=1e-5) for end in ends)


def test_hooks_are_gone_after_an_error():
    model = attach_last(build("open_clip"), top_k=2)
    before = num_hooks(model)

    def fail(module: nn.Module, args: tuple, output: object) -> None:
        raise RuntimeError("in the middle of the pass")

    with model.transformer.resblocks[1].register_forward_hook(fail):
        with pytest.raises(RuntimeError, match="in the middle"):
            layer_tokens(model, IMAGES)
        assert num_hooks(model) == before + 1


def test_a_host_without_final_norm_says_so():
    model = TimmViT(**TINY_TIMM, global_pool="avg", fc_norm=False, final_norm=False).eval()
    tokens = layer_tokens(model, IMAGES)
    assert not tokens.has_final_norm
    assert torch.equal(tokens.layers[-1], tokens.output.patch_tokens)


def test_a_convnet_has_its_last_map_only():
    model = timm.create_model("test_resnet", num_classes=5).eval()
    images = torch.randn(2, 3, 64, 64)
    tokens = layer_tokens(model, images)
    assert count_layers(model) == (1, False)
    assert (len(tokens.layers), tokens.has_final_norm) == (1, False)
    assert tokens.all_tokens[0] is tokens.output.patch_tokens


def test_blocks_that_drop_patches_are_an_error():
    model = build("torchvision")
    model.encoder.layers[0].register_forward_hook(lambda _, args, out: out[:, :9])
    model.encoder.layers[1].register_forward_hook(lambda _, args, out: torch.cat([out, out[:, :8]], dim=1))
    with pytest.raises(ValueError, match=r"block 0 of this VisionTransformer.*16 patch tokens of its \(4, 4\) grid"):
        layer_tokens(model, IMAGES)
