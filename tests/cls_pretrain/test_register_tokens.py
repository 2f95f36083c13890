"""Register tokens against the forward written out by hand, and that nothing else of the model notices them."""

import copy

import pytest
import torch
from classification_net import ClassificationNet
from register_tokens import add_register_tokens
from torch import nn
from torchvision.models import VisionTransformer, resnet18

from last_vit.checkpoint import load_checkpoint, load_strict, save_checkpoint
from last_vit.dense import attach_pool, dense_forward
from last_vit.layer_tokens import layer_tokens


def build_vit(seed=0, num_classes=5):
    torch.manual_seed(seed)
    vit = VisionTransformer(8, 2, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=24, num_classes=num_classes)
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.3)
    return vit.eval()


def with_registers(num_registers=3, seed=0):
    """Registers of the size of the other tokens, so that they matter."""
    vit = add_register_tokens(build_vit(seed), num_registers)
    nn.init.normal_(vit.register_tokens)
    return vit


def by_hand(vit, images):
    """[CLS, registers, patches] through blocks and norm; returns the normed tokens without the registers."""
    patches = vit.conv_proj(images).flatten(2).mT
    cls = vit.class_token.expand(len(images), -1, -1)
    tokens = torch.cat([cls, patches], dim=1) + vit.encoder.pos_embedding
    registers = vit.register_tokens.expand(len(images), -1, -1)
    tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)
    for block in vit.encoder.layers:
        tokens = block(tokens)
    keep = [0, *range(1 + registers.shape[1], tokens.shape[1])]
    return vit.encoder.ln(tokens)[:, keep]


@pytest.mark.parametrize("mode", ["train", "eval", "inference"])
@pytest.mark.parametrize("num_registers", [1, 4])
def test_is_the_forward_by_hand(mode, num_registers):
    vit, images = with_registers(num_registers).train(mode == "train"), torch.randn(3, 3, 8, 8)
    with torch.inference_mode() if mode == "inference" else torch.enable_grad():
        tokens, output = by_hand(vit, images), dense_forward(vit, images)
        torch.testing.assert_close(output.patch_tokens, tokens[:, 1:])
        torch.testing.assert_close(output.cls_token, tokens[:, 0])
        torch.testing.assert_close(vit(images), vit.heads(tokens[:, 0]))
    assert output.grid_hw == (4, 4)


def test_initial_registers_are_nearly_zero_and_one_parameter():
    plain, vit = build_vit(), add_register_tokens(build_vit(), 200)
    added = set(vit.state_dict()) - set(plain.state_dict())
    assert added == {"register_tokens"}
    assert all(torch.equal(vit.state_dict()[name], tensor) for name, tensor in plain.state_dict().items())
    assert vit.register_tokens.shape == (1, 200, 16)
    assert 0.9e-6 < vit.register_tokens.std().item() < 1.1e-6
    assert vit.register_tokens.requires_grad
    assert vit.register_tokens.is_leaf


def test_registers_are_used_and_learn():
    vit, images = with_registers(), torch.randn(2, 3, 8, 8)
    assert (vit(images) - build_vit()(images)).abs().max() > 1e-3
    vit(images).square().sum().backward()
    assert (vit.register_tokens.grad.abs().sum(dim=2) > 0).all()


@pytest.mark.parametrize("kind", ["cls", "mean", "max", "attention", "last"])
def test_every_pool_sees_class_token_and_patches_only(kind):
    vit, images = with_registers(), torch.randn(2, 3, 8, 8)
    attach_pool(vit, kind, top_k=16 if kind == "last" else None)  # K = N is the mean over patches
    tokens = by_hand(vit, images)
    if kind in ("cls", "mean", "last"):
        expected = tokens[:, 0] if kind == "cls" else tokens[:, 1:].mean(dim=1)
        torch.testing.assert_close(dense_forward(vit, images).global_token, expected)
    if kind == "max":
        torch.testing.assert_close(dense_forward(vit, images).global_token, tokens[:, 1:].amax(dim=1))
    torch.testing.assert_close(dense_forward(vit, images).logits, vit(images))


def test_layer_tokens_are_the_patches():
    vit, images = with_registers(), torch.randn(2, 3, 8, 8)
    tokens = layer_tokens(vit, images)
    assert [layer.shape for layer in tokens.layers] == [(2, 16, 16)] * 2
    torch.testing.assert_close(vit.encoder.ln(tokens.layers[-1]), tokens.output.patch_tokens)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_gradients(backend):
    vit, images = with_registers(), torch.randn(2, 3, 8, 8)
    twin = copy.deepcopy(vit)
    torch.compile(twin, backend=backend)(images).square().sum().backward()
    vit(images).square().sum().backward()
    torch.testing.assert_close(twin.register_tokens.grad, vit.register_tokens.grad)


def test_a_deep_copy_has_its_own_registers():
    vit, images = with_registers(), torch.randn(2, 3, 8, 8)
    twin, before = copy.deepcopy(vit), vit(images)
    torch.testing.assert_close(twin(images), before)
    nn.init.normal_(twin.register_tokens)
    assert torch.equal(vit(images), before)
    assert (twin(images) - before).abs().max() > 1e-3
    swapped = {"register_tokens": twin.register_tokens}
    torch.testing.assert_close(torch.func.functional_call(vit, swapped, (images,)), twin(images))


def test_weights_do_not_load_across_registers(tmp_path):
    trained, images = ClassificationNet(build_vit(), "cls", num_registers=3), torch.randn(2, 3, 8, 8)
    nn.init.normal_(trained.model.register_tokens)
    save_checkpoint(tmp_path / "model.pth", {"model": trained.state_dict()})
    twin = ClassificationNet(build_vit(seed=1), "cls", num_registers=3)
    load_checkpoint(twin, tmp_path / "model.pth")
    assert torch.equal(twin(images), trained(images))
    with pytest.raises(ValueError, match=r"unexpected .*register_tokens[\s\S]*model\.num_registers"):
        load_checkpoint(ClassificationNet(build_vit(), "cls"), tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"other shape .*register_tokens \[1, 3, 16\] -> \[1, 4, 16\][\s\S]*num_reg"):
        load_checkpoint(ClassificationNet(build_vit(), "cls", num_registers=4), tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"missing .*register_tokens"):
        load_strict(trained, ClassificationNet(build_vit(), "cls").state_dict())


@pytest.mark.parametrize("num_registers", [0, -1, 2.0, True, "4"])
def test_bad_numbers(num_registers):
    with pytest.raises(ValueError, match="num_registers must be an int of at least 1"):
        add_register_tokens(build_vit(), num_registers)


def test_other_hosts_and_a_second_call():
    with pytest.raises(ValueError, match="torchvision's VisionTransformer only, got ResNet"):
        ClassificationNet(resnet18(), "host", num_registers=4)
    with pytest.raises(ValueError, match="3 register tokens already"):
        add_register_tokens(with_registers(), 4)
