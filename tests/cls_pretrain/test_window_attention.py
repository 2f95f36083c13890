"""Window attention against the masked attention written out in float64, by perturbation, and against silent loading."""

import copy

import pytest
import torch
from register_tokens import add_register_tokens
from torch import nn
from torchvision.models import VisionTransformer, resnet18
from window_attention import add_window_attention, window_mask

from last_vit.checkpoint import load_strict
from last_vit.dense import attach_last, dense_forward


def build_vit(num_layers=1, num_heads=2, grid=5, seed=0):
    """A ViT with a grid of 5 x 5 patches of one pixel, all weights random, the head too."""
    torch.manual_seed(seed)
    vit = VisionTransformer(grid, 1, num_layers, num_heads, hidden_dim=16, mlp_dim=24, num_classes=4)
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.3)
    return vit.eval()


def cell(index, grid, window):
    row, column = divmod(index, grid)
    return row // window, column // window


def explicit_attention(attention, tokens, num_prefix, grid, window):
    """nn.MultiheadAttention in float64, one head and one query after the other, over the keys that it may see."""
    weight, bias = attention.in_proj_weight.double(), attention.in_proj_bias.double()
    queries, keys, values = (tokens.double() @ weight.T + bias).chunk(3, dim=-1)
    heads, size = attention.num_heads, tokens.shape[2] // attention.num_heads
    output = torch.zeros_like(queries)
    for i in range(tokens.shape[1]):
        visible = [
            j
            for j in range(tokens.shape[1])
            if i < num_prefix
            or j < num_prefix
            or cell(i - num_prefix, grid, window) == cell(j - num_prefix, grid, window)
        ]
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = (keys[:, visible, part] @ queries[:, i, part, None])[..., 0] / size**0.5
            output[:, i, part] = (scores.softmax(dim=1)[..., None] * values[:, visible, part]).sum(dim=1)
    return output @ attention.out_proj.weight.double().T + attention.out_proj.bias.double()


@pytest.mark.parametrize("mode", ["train", "eval", "no_grad", "inference"])
@pytest.mark.parametrize("num_heads", [1, 2])  # an odd number of heads bars nn.MultiheadAttention's fast path
@pytest.mark.parametrize(("num_registers", "window"), [(0, 2), (3, 2), (0, 1), (2, 4), (0, 5), (0, 9)])
def test_is_the_masked_attention(mode, num_heads, num_registers, window):
    vit = add_window_attention(build_vit(num_heads=num_heads), [0], window)
    if num_registers:
        add_register_tokens(vit, num_registers)  # also after the windows
    vit.train(mode == "train")
    seen = {}
    attention = vit.encoder.layers[0].self_attention
    attention.register_forward_hook(lambda _, args, output: seen.update(tokens=args[0], output=output[0]))
    contexts = {"no_grad": torch.no_grad(), "inference": torch.inference_mode()}
    with contexts.get(mode, torch.enable_grad()):
        vit(torch.randn(3, 3, 5, 5))
        expected = explicit_attention(attention, seen["tokens"], 1 + num_registers, 5, window)
    assert seen["tokens"].shape[1] == 1 + num_registers + 25
    torch.testing.assert_close(seen["output"].double(), expected, atol=1e-5, rtol=1e-5)


def test_window_mask_by_hand():
    """14 patches in windows of 4: cells of 4, 4, 4 and 2, so 16 windows of 16, 8 or 4 patches."""
    mask = window_mask((14, 14), 4)
    sizes = (~mask).sum(dim=1)
    assert torch.equal(mask, mask.T)
    assert {int(size): int((sizes == size).sum()) for size in sizes.unique()} == {16: 144, 8: 48, 4: 4}
    assert not mask[0, 3 * 14 + 3]
    assert mask[0, 4]
    assert mask[3, 4 * 14 + 3]
    assert not mask[195, 12 * 14 + 12]
    wide = window_mask((2, 5), 2)
    assert wide[0].tolist() == [False, False, True, True, True, False, False, True, True, True]


def test_another_window_has_no_influence():
    """Gradients of a patch's output are exactly zero over other windows' patches, and over no others."""
    vit = add_window_attention(build_vit(), [0], 2)
    tokens = torch.randn(1, 26, 16, requires_grad=True)
    for query in (0, 7, 24):
        (gradient,) = torch.autograd.grad(vit.encoder.layers(tokens)[0, 1 + query].sum(), tokens)
        reached = gradient[0].abs().sum(dim=1) > 0
        expected = [True] + [cell(query, 5, 2) == cell(key, 5, 2) for key in range(25)]
        assert reached.tolist() == expected
    (gradient,) = torch.autograd.grad(vit.encoder.layers(tokens)[0, 0].sum(), tokens)
    assert (gradient[0].abs().sum(dim=1) > 0).all(), "CLS sees everything"


def test_only_chosen_blocks_are_windowed():
    images, plain = torch.randn(2, 3, 5, 5), build_vit(num_layers=2)
    outputs = [dense_forward(plain, images)]
    for layers in ([0], [1], [0, 1]):
        vit = add_window_attention(copy.deepcopy(plain), layers, 2)
        has_mask = [hasattr(block.self_attention, "window_mask") for block in vit.encoder.layers]
        assert has_mask == [layer in layers for layer in (0, 1)]
        outputs.append(dense_forward(vit, images))
    for i, one in enumerate(outputs):
        for other in outputs[i + 1 :]:
            assert (one.patch_tokens - other.patch_tokens).abs().max() > 1e-3
    none, first, second, both = (output.logits for output in outputs)
    assert torch.equal(none, second), "CLS stays global, so windows at the last block alone cannot change it"
    assert torch.equal(first, both)
    assert (none - first).abs().max() > 1e-3


def test_a_window_of_the_whole_grid_changes_nothing():
    images, plain = torch.randn(2, 3, 5, 5), build_vit(num_layers=2)
    wide = add_window_attention(copy.deepcopy(plain), [0, 1], 5)
    torch.testing.assert_close(wide(images), plain(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_and_copied(backend):
    vit = attach_last(add_window_attention(build_vit(num_layers=2), [1], 2), top_k=3)
    images = torch.randn(2, 3, 5, 5)
    expected = vit(images)
    torch.testing.assert_close(torch.compile(vit, backend=backend)(images), expected)
    torch.testing.assert_close(copy.deepcopy(vit)(images), expected)
    torch.testing.assert_close(dense_forward(vit, images).logits, expected)
    assert torch.isfinite(copy.deepcopy(vit).to(torch.bfloat16)(images.bfloat16())).all()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(vit(images).float(), expected, atol=0.1, rtol=0.1)


def test_weights_do_not_load_across_windows():
    plain, windowed = build_vit(num_layers=2), add_window_attention(build_vit(num_layers=2, seed=1), [1], 2)
    twin = add_window_attention(build_vit(num_layers=2, seed=2), [1], 2)
    load_strict(twin, windowed.state_dict())
    images = torch.randn(2, 3, 5, 5)
    assert torch.equal(twin(images), windowed(images))
    with pytest.raises(ValueError, match=r"unexpected .*window_size[\s\S]*window attention"):
        load_strict(plain, windowed.state_dict())
    with pytest.raises(ValueError, match=r"missing .*window_size[\s\S]*window attention"):
        load_strict(twin, plain.state_dict())
    with pytest.raises(ValueError, match=r"encoder_layer_0\.self_attention\.window_size"):
        load_strict(add_window_attention(build_vit(num_layers=2), [0], 2), windowed.state_dict())


def test_weights_of_another_window_size_are_refused_before_anything_is_loaded():
    windowed = add_window_attention(build_vit(seed=1), [0], 2)
    other = nn.ModuleDict({"model": copy.deepcopy(add_window_attention(build_vit(seed=2), [0], 3))})
    before = copy.deepcopy(other.state_dict())
    weights = {f"model.{name}": tensor for name, tensor in windowed.state_dict().items()}
    for load in (load_strict, nn.Module.load_state_dict):
        with pytest.raises(ValueError, match=r"trained with windows of 2 x 2 .* has 3 x 3: .* window_size=2"):
            load(other, weights)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize("layers", [[], [2], [-1], [0, 0], [True], [0.5], 0, "all"])
def test_layers_out_of_range(layers):
    with pytest.raises(ValueError, match=r"different blocks in \[0, 1\], got"):
        add_window_attention(build_vit(num_layers=2), layers)


@pytest.mark.parametrize("window", [0, -4, 2.0, True, None])
def test_window_below_one(window):
    with pytest.raises(ValueError, match="window_size must be a number of patches, at least 1"):
        add_window_attention(build_vit(), [0], window)


def test_other_hosts_and_a_second_call():
    with pytest.raises(ValueError, match="torchvision's VisionTransformer only, got ResNet"):
        add_window_attention(resnet18(), [0])
    compiled = torch.compile(build_vit(), backend="eager")
    with pytest.raises(ValueError, match="before wrapping or compiling"):
        add_window_attention(compiled, [0])
    with pytest.raises(ValueError, match="window attention already"):
        add_window_attention(add_window_attention(build_vit(num_layers=2), [0]), [0, 1])
