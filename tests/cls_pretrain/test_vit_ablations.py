"""Register tokens and window attention against the forward written out by hand, and that no weights cross them."""

import copy

import pytest
import torch
from classification_net import ClassificationNet
from layer_tokens import layer_tokens
from torch import nn
from torchvision.models import VisionTransformer, resnet18
from vit_ablations import add_register_tokens, add_window_attention

from last_vit.checkpoint import load_checkpoint, load_strict, save_checkpoint
from last_vit.dense import attach_last, attach_pool, dense_forward

IMAGES = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(1))


def build_vit(num_layers=2, num_heads=2, seed=0):
    """A ViT with a grid of 5 x 5 patches of one pixel, all weights random, the head too."""
    torch.manual_seed(seed)
    vit = VisionTransformer(5, 1, num_layers, num_heads, hidden_dim=16, mlp_dim=24, num_classes=4)
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.3)
    return vit.eval()


def with_registers(num_registers=3, seed=0):
    """Registers of the size of the other tokens, so that they matter."""
    vit = add_register_tokens(build_vit(seed=seed), num_registers)
    nn.init.normal_(vit.register_tokens)
    return vit


def by_hand(vit, images):
    """[CLS, registers, patches] through blocks and norm; returns the normed tokens without the registers."""
    cls = vit.class_token.expand(len(images), -1, -1)
    tokens = torch.cat([cls, vit.conv_proj(images).flatten(2).mT], dim=1) + vit.encoder.pos_embedding
    registers = vit.register_tokens.expand(len(images), -1, -1)
    tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)
    for block in vit.encoder.layers:
        tokens = block(tokens)
    keep = [0, *range(1 + registers.shape[1], tokens.shape[1])]
    return vit.encoder.ln(tokens)[:, keep]


@pytest.mark.parametrize("mode", ["train", "eval", "inference"])
@pytest.mark.parametrize("num_registers", [1, 4])
def test_registers_are_the_forward_by_hand(mode, num_registers):
    vit = with_registers(num_registers).train(mode == "train")
    with torch.inference_mode() if mode == "inference" else torch.enable_grad():
        tokens, output = by_hand(vit, IMAGES), dense_forward(vit, IMAGES)
        torch.testing.assert_close(output.patch_tokens, tokens[:, 1:])
        torch.testing.assert_close(output.cls_token, tokens[:, 0])
        torch.testing.assert_close(vit(IMAGES), vit.heads(tokens[:, 0]))
        layers = layer_tokens(vit, IMAGES).layers
        torch.testing.assert_close(vit.encoder.ln(layers[-1]), output.patch_tokens)
    assert output.grid_hw == (5, 5)


def test_registers_are_one_small_parameter_that_learns():
    plain, vit = build_vit(), add_register_tokens(build_vit(), 200)
    assert set(vit.state_dict()) - set(plain.state_dict()) == {"register_tokens"}
    assert vit.register_tokens.shape == (1, 200, 16)
    assert 0.9e-6 < vit.register_tokens.std().item() < 1.1e-6
    vit(IMAGES).square().sum().backward()
    assert (vit.register_tokens.grad.abs().sum(dim=2) > 0).all()
    assert (with_registers()(IMAGES) - plain(IMAGES)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["cls", "mean", "max", "attention", "last"])
def test_every_pool_sees_class_token_and_patches_only(kind):
    vit = attach_pool(with_registers(), kind, top_k=25 if kind == "last" else None)  # K = N is the mean over patches
    tokens, output = by_hand(vit, IMAGES), dense_forward(vit, IMAGES)
    patches = tokens[:, 1:]
    expected = {"cls": tokens[:, 0], "mean": patches.mean(1), "last": patches.mean(1), "max": patches.amax(1)}
    torch.testing.assert_close(output.global_token, expected.get(kind, output.global_token))
    torch.testing.assert_close(output.logits, vit(IMAGES))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_and_copied(backend):
    vit = attach_last(add_window_attention(with_registers(), [1], 2), top_k=3)
    twin, expected = copy.deepcopy(vit), vit(IMAGES)
    torch.testing.assert_close(dense_forward(vit, IMAGES).logits, expected)
    compiled = torch.compile(twin, backend=backend)(IMAGES)
    torch.testing.assert_close(compiled, expected)
    compiled.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(twin.register_tokens.grad, vit.register_tokens.grad)
    nn.init.normal_(twin.register_tokens)
    assert torch.equal(vit(IMAGES), expected), "a deep copy has its own registers"
    swapped = {"register_tokens": twin.register_tokens}
    torch.testing.assert_close(torch.func.functional_call(vit, swapped, (IMAGES,)), twin(IMAGES))
    assert torch.isfinite(copy.deepcopy(vit).to(torch.bfloat16)(IMAGES.bfloat16())).all()


def cell(index, window, grid=5):
    row, column = divmod(index, grid)
    return row // window, column // window


def explicit_attention(attention, tokens, num_prefix, window):
    """nn.MultiheadAttention in float64, one head and one query after the other, over the keys that it may see."""
    weight, bias = attention.in_proj_weight.double(), attention.in_proj_bias.double()
    queries, keys, values = (tokens.double() @ weight.T + bias).chunk(3, dim=-1)
    heads, size = attention.num_heads, tokens.shape[2] // attention.num_heads
    output, places = torch.zeros_like(queries), range(tokens.shape[1])
    for i in places:
        own = cell(i - num_prefix, window)
        visible = [j for j in places if min(i, j) < num_prefix or cell(j - num_prefix, window) == own]
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = (keys[:, visible, part] @ queries[:, i, part, None])[..., 0] / size**0.5
            output[:, i, part] = (scores.softmax(dim=1)[..., None] * values[:, visible, part]).sum(dim=1)
    return output @ attention.out_proj.weight.double().T + attention.out_proj.bias.double()


@pytest.mark.parametrize("mode", ["train", "eval", "inference"])
@pytest.mark.parametrize("num_heads", [1, 2])  # an odd number of heads bars nn.MultiheadAttention's fast path
@pytest.mark.parametrize(("num_registers", "window"), [(0, 2), (3, 2), (0, 1), (2, 4), (0, 9)])
def test_windows_are_the_masked_attention(mode, num_heads, num_registers, window):
    vit = add_window_attention(build_vit(1, num_heads), [0], window)
    if num_registers:
        add_register_tokens(vit, num_registers)  # also after the windows
    vit.train(mode == "train")
    seen = {}
    attention = vit.encoder.layers[0].self_attention
    attention.register_forward_hook(lambda _, args, output: seen.update(tokens=args[0], output=output[0]))
    with torch.inference_mode() if mode == "inference" else torch.enable_grad():
        vit(IMAGES)
        expected = explicit_attention(attention, seen["tokens"], 1 + num_registers, window)
    assert seen["tokens"].shape[1] == 1 + num_registers + 25
    torch.testing.assert_close(seen["output"].double(), expected, atol=1e-5, rtol=1e-5)


def test_only_chosen_blocks_are_windowed():
    """CLS stays global, so windows at the last block alone cannot change it."""
    plain = build_vit()
    outputs = [dense_forward(plain, IMAGES)]
    for layers in ([0], [1], [0, 1]):
        vit = add_window_attention(copy.deepcopy(plain), layers, 2)
        has_mask = [hasattr(block.self_attention, "window_mask") for block in vit.encoder.layers]
        assert has_mask == [layer in layers for layer in (0, 1)]
        outputs.append(dense_forward(vit, IMAGES))
    for i, one in enumerate(outputs):
        for other in outputs[i + 1 :]:
            assert (one.patch_tokens - other.patch_tokens).abs().max() > 1e-3
    none, first, second, both = (output.logits for output in outputs)
    assert torch.equal(none, second)
    assert torch.equal(first, both)
    assert (none - first).abs().max() > 1e-3


def test_weights_do_not_load_across_registers(tmp_path):
    trained = ClassificationNet(build_vit(), "cls", num_registers=3)
    save_checkpoint(tmp_path / "model.pth", {"model": trained.state_dict()})
    twin = ClassificationNet(build_vit(seed=1), "cls", num_registers=3)
    load_checkpoint(twin, tmp_path / "model.pth")
    assert torch.equal(twin(IMAGES), trained(IMAGES))
    with pytest.raises(ValueError, match=r"unexpected .*register_tokens[\s\S]*model\.num_registers"):
        load_checkpoint(ClassificationNet(build_vit(), "cls"), tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"other shape .*register_tokens \[1, 3, 16\] -> \[1, 4, 16\][\s\S]*num_reg"):
        load_checkpoint(ClassificationNet(build_vit(), "cls", num_registers=4), tmp_path / "model.pth")


def test_weights_do_not_load_across_windows():
    """Nor into windows of another size, before anything is loaded, whoever loads."""
    plain, windowed = build_vit(), add_window_attention(build_vit(seed=1), [1], 2)
    twin = add_window_attention(build_vit(seed=2), [1], 2)
    load_strict(twin, windowed.state_dict())
    assert torch.equal(twin(IMAGES), windowed(IMAGES))
    for model, weights, named in ((plain, windowed, "unexpected"), (twin, plain, "missing")):
        with pytest.raises(ValueError, match=rf"{named} .*window_size[\s\S]*window attention"):
            load_strict(model, weights.state_dict())
    other = nn.ModuleDict({"model": add_window_attention(build_vit(seed=2), [1], 3)})
    before = copy.deepcopy(other.state_dict())
    weights = {f"model.{name}": tensor for name, tensor in windowed.state_dict().items()}
    for load in (load_strict, nn.Module.load_state_dict):
        with pytest.raises(ValueError, match=r"trained with windows of 2 x 2 .* has 3 x 3: .* window_size=2"):
            load(other, weights)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


BAD = [
    *((add_register_tokens, (number,), "num_registers must be an int of at least 1") for number in (0, 2.0, True, "4")),
    *(
        (add_window_attention, (layers,), r"different blocks in \[0, 1\], got")
        for layers in ([], [2], [-1], [0, 0], [True], [0.5], 3, "all")
    ),
    *((add_window_attention, ([0], window), "window_size must be a number") for window in (0, 2.0, True, None)),
]


@pytest.mark.parametrize(("add", "arguments", "message"), BAD)
def test_bad_numbers(add, arguments, message):
    with pytest.raises(ValueError, match=message):
        add(build_vit(), *arguments)


def test_other_hosts_and_a_second_call():
    for options in ({"num_registers": 4}, {"window_layers": [0]}):
        with pytest.raises(ValueError, match="torchvision's VisionTransformer only, got ResNet"):
            ClassificationNet(resnet18(), "host", **options)
    with pytest.raises(ValueError, match="before wrapping or compiling"):
        add_window_attention(torch.compile(build_vit(), backend="eager"), [0])
    with pytest.raises(ValueError, match="3 register tokens already"):
        add_register_tokens(with_registers(), 4)
    with pytest.raises(ValueError, match="window attention already"):
        add_window_attention(add_window_attention(build_vit(), [0]), [0, 1])
