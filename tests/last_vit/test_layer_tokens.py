"""Tokens after every block, on every host: the last ones through the host's own norm are dense_forward's."""

from collections.abc import Callable
from typing import NamedTuple

import open_clip
import pytest
import timm
import torch
import torchvision
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer as ClipViT
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn
from torchvision.models import VisionTransformer

from last_vit.dense import attach_last, dense_forward
from last_vit.layer_tokens import count_layers, layer_tokens

TINY_TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 5}
TINY_CLIP = {"image_size": 32, "patch_size": 8, "width": 16, "layers": 3, "heads": 2, "mlp_ratio": 2.0, "output_dim": 6}
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def tiny_torchvision() -> nn.Module:
    return VisionTransformer(32, 8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5)


def tiny_clip() -> nn.Module:
    vision_cfg = {"image_size": 32, "patch_size": 8, "width": 16, "head_width": 8, "layers": 3}
    text_cfg = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    return open_clip.model.CLIP(embed_dim=6, vision_cfg=vision_cfg, text_cfg=text_cfg)


def sequence_first_clip() -> nn.Module:
    """A tower whose blocks get and return [1 + N, B, D], as open_clip's Transformer also knows them."""
    tower = ClipViT(**TINY_CLIP)
    tower.transformer = open_clip.transformer.Transformer(16, 3, 2, mlp_ratio=2.0, batch_first=False)
    return tower


class Host(NamedTuple):
    build: Callable[[], nn.Module]
    blocks: Callable[[nn.Module], list[nn.Module]]
    norm: Callable[[nn.Module], nn.Module]


HOSTS = {
    "torchvision": Host(tiny_torchvision, lambda m: list(m.encoder.layers), lambda m: m.encoder.ln),
    "timm-vit": Host(lambda: TimmViT(**TINY_TIMM), lambda m: list(m.blocks), lambda m: m.norm),
    "timm-registers": Host(lambda: TimmViT(**TINY_TIMM, reg_tokens=4), lambda m: list(m.blocks), lambda m: m.norm),
    "timm-fc-norm": Host(
        lambda: TimmViT(**TINY_TIMM, global_pool="avg"), lambda m: list(m.blocks), lambda m: m.fc_norm
    ),
    "timm-no-cls": Host(
        lambda: TimmViT(**TINY_TIMM, global_pool="avg", fc_norm=False, class_token=False),
        lambda m: list(m.blocks),
        lambda m: m.norm,
    ),
    "timm-eva": Host(
        lambda: Eva(**TINY_TIMM, use_rot_pos_emb=True, global_pool="token"), lambda m: list(m.blocks), lambda m: m.norm
    ),
    "open_clip": Host(lambda: ClipViT(**TINY_CLIP), lambda m: list(m.transformer.resblocks), lambda m: m.ln_post),
    "open_clip-sequence-first": Host(sequence_first_clip, lambda m: list(m.transformer.resblocks), lambda m: m.ln_post),
    "open_clip-ln-after": Host(
        lambda: ClipViT(**TINY_CLIP, pool_type="avg", final_ln_after_pool=True),
        lambda m: list(m.transformer.resblocks),
        lambda m: m.ln_post,
    ),
    "open_clip-CLIP": Host(tiny_clip, lambda m: list(m.visual.transformer.resblocks), lambda m: m.visual.ln_post),
}


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> Host:
    return HOSTS[request.param]


@pytest.fixture(autouse=True)
def _inference():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def build(host: Host) -> nn.Module:
    """A host whose final norm is visible: weights and biases other than 1 and 0."""
    with torch.inference_mode(False):
        model = host.build().eval()
        for parameter in host.norm(model).parameters():
            nn.init.normal_(parameter)
    return model


def num_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_last_layer_through_the_hosts_norm_is_the_dense_output(host):
    model = build(host)
    expected = dense_forward(model, IMAGES)
    tokens = layer_tokens(model, IMAGES)
    for found, wanted in zip(tokens.output, expected, strict=True):
        assert found is wanted or (torch.equal(found, wanted) if isinstance(found, torch.Tensor) else found == wanted)
    assert (len(tokens.layers), tokens.has_final_norm) == (3, True) == count_layers(model)
    assert {layer.shape for layer in tokens.layers} == {(4, 16, 16)}
    torch.testing.assert_close(host.norm(model)(tokens.layers[-1]), expected.patch_tokens)
    assert not torch.allclose(tokens.layers[-1], expected.patch_tokens)


def test_every_layer_is_what_the_next_block_gets(host):
    model = build(host)
    blocks, seen = host.blocks(model), []
    hooks = [block.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for block in blocks[1:]]
    tokens = layer_tokens(model, IMAGES)
    for hook in hooks:
        hook.remove()
    assert len(seen) == 2
    for layer, received in zip(tokens.layers, seen, strict=False):
        received = received if len(received) == len(IMAGES) else received.transpose(0, 1)
        assert torch.equal(layer, received[:, -16:])


def test_a_batch_of_one_is_a_slice_of_the_batch(host):
    model = build(host)
    whole, single = layer_tokens(model, IMAGES), layer_tokens(model, IMAGES[2:3])
    for all_images, one_image in zip(whole.layers, single.layers, strict=True):
        torch.testing.assert_close(all_images[2:3], one_image)


def test_hooks_are_gone_afterwards_and_after_an_error(host):
    model = build(host)
    attach_last(model, top_k=2)
    before = num_hooks(model)
    layer_tokens(model, IMAGES)
    assert num_hooks(model) == before

    def fail(module: nn.Module, args: tuple, output: object) -> None:
        raise RuntimeError("in the middle of the pass")

    with host.blocks(model)[1].register_forward_hook(fail):
        before_failure = num_hooks(model)
        with pytest.raises(RuntimeError, match="in the middle"):
            layer_tokens(model, IMAGES)
        assert num_hooks(model) == before_failure


def test_tokens_inserted_behind_the_class_token_are_no_patches():
    """As last_vit's own registers are put into a torchvision ViT: by hooks around its layers."""
    model = build(HOSTS["torchvision"])

    def insert(module: nn.Module, args: tuple) -> tuple:
        registers = torch.full((len(args[0]), 2, 16), 3.0)
        return (torch.cat([args[0][:, :1], registers, args[0][:, 1:]], dim=1),)

    model.encoder.layers.register_forward_pre_hook(insert)
    model.encoder.layers.register_forward_hook(lambda _, args, out: torch.cat([out[:, :1], out[:, 3:]], dim=1))
    tokens = layer_tokens(model, IMAGES)
    assert {layer.shape for layer in tokens.layers} == {(4, 16, 16)}
    torch.testing.assert_close(model.encoder.ln(tokens.layers[-1]), tokens.output.patch_tokens)


def test_a_host_without_final_norm_says_so():
    model = TimmViT(**TINY_TIMM, global_pool="avg", fc_norm=False, final_norm=False).eval()
    tokens = layer_tokens(model, IMAGES)
    assert not tokens.has_final_norm
    assert torch.equal(tokens.layers[-1], tokens.output.patch_tokens)


@pytest.mark.parametrize(
    "build_convnet", [lambda: torchvision.models.resnet18(), lambda: timm.create_model("test_resnet", num_classes=5)]
)
def test_a_convnet_has_its_last_map_only(build_convnet):
    model = build_convnet().eval()
    images = torch.randn(2, 3, 64, 64)
    tokens = layer_tokens(model, images)
    assert count_layers(model) == (1, False)
    assert (len(tokens.layers), tokens.has_final_norm) == (1, False)
    assert tokens.layers[0] is tokens.output.patch_tokens


def test_a_timm_tower_is_read_through_its_trunk():
    tower = TimmModel("test_vit", embed_dim=6, image_size=160, pool="token", proj="linear").eval()
    tokens = layer_tokens(tower, torch.randn(1, 3, 160, 160))
    assert len(tokens.layers) == len(tower.trunk.blocks)
    torch.testing.assert_close(tower.trunk.norm(tokens.layers[-1]), tokens.output.patch_tokens)


def test_blocks_that_drop_patches_are_an_error():
    model = tiny_torchvision().eval()
    model.encoder.layers[1].register_forward_hook(lambda _, args, out: out[:, :9])
    model.encoder.layers[2].register_forward_hook(lambda _, args, out: torch.cat([out, out[:, :8]], dim=1))
    with pytest.raises(ValueError, match=r"block 1 of this VisionTransformer.*16 patch tokens of its \(4, 4\) grid"):
        layer_tokens(model, IMAGES)


def test_unsupported_hosts_are_refused():
    with pytest.raises(ValueError, match="no adapter for"):
        layer_tokens(nn.Linear(2, 2), IMAGES)
