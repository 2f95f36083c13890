"""Adapters on tiny ViTs of every library: only the pooling changes, and a dense pass reads what the head reads."""

import copy

import pytest
import torch
from host_parts import FIXED, HOSTS, IMAGES, build_host, late_norm, own_output
from open_clip.transformer import VisionTransformer as ClipViT
from torch import nn

from last_vit.adapters import find_adapter, unwrap_host
from last_vit.adapters.hub_vit import HubAdapter
from last_vit.dense import attach_last, attach_pool, dense_forward, pooling_of
from last_vit.pooling import last_pool

WIDE = torch.randn(2, 3, 24, 56, generator=torch.Generator().manual_seed(1))
pytestmark = pytest.mark.usefixtures("inference")


@pytest.fixture(params=HOSTS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_attaching_changes_the_pool_and_leaves_no_other_trace(name):
    model, kind = build_host(name), HOSTS[name].own
    keys, modules = list(model.state_dict()), [path for path, _ in model.named_modules()]
    assert pooling_of(model) == {"pool": "host"}
    own = own_output(model)
    if kind is None:
        with pytest.raises(ValueError, match=r"learned attention pool.*dense_forward works"):
            attach_last(model, top_k=3)
        return
    assert attach_last(model, top_k=3, sigma=2.0, variant="paper") is model
    assert pooling_of(model) == {"pool": "last", "top_k": 3, "variant": "paper", "sigma": 2.0}
    last = own_output(model)
    assert not torch.allclose(last, own, atol=1e-3)
    assert repr(model).splitlines()[1].strip() == "pool=last, top_k=3, variant=paper, sigma=2.0"
    copied = copy.deepcopy(model)
    assert torch.equal(own_output(copied), last)
    attach_pool(copied, "max")  # a copy has its own pool
    assert "pool=max" in repr(copied)
    assert (pooling_of(model)["pool"], pooling_of(copied)["pool"]) == ("last", "max")
    assert torch.equal(own_output(model), last)
    assert list(model.state_dict()) == keys
    assert [path for path, _ in model.named_modules()] == modules
    attach_pool(model, kind)
    assert pooling_of(model) == {"pool": kind, "top_k": None, "variant": None, "sigma": None}
    found = own_output(model)  # of the class token bit for bit; the adapter's mean may add in another order
    assert torch.allclose(found, own, atol=1e-6) if kind == "mean" else torch.equal(found, own)


@pytest.mark.parametrize("pool", [None, "last"])
def test_dense_forward_reads_what_the_head_reads(name, pool):
    model, host = build_host(name), HOSTS[name]
    if pool and host.own:
        attach_pool(model, pool, top_k=3)
    out, one = dense_forward(model, IMAGES), dense_forward(model, IMAGES[:1])
    assert torch.equal(out.logits, own_output(model))  # whose hooks are gone
    if host.head:
        torch.testing.assert_close(host.head(model, out.global_token), out.logits)
    assert (out.grid_hw, out.patch_tokens.shape) == ((4, 4), (4, 16, 16))
    assert (out.cls_token is not None) == host.has_cls
    if host.own and pool:
        torch.testing.assert_close(out.global_token, last_pool(out.patch_tokens, top_k=3))
    elif host.own and late_norm(model) is None:
        torch.testing.assert_close(out.global_token, out.patch_tokens.mean(1) if host.own == "mean" else out.cls_token)
    if not pool:
        assert not {"pool", "_global_pool"} & set(vars(getattr(model, "visual", model)))
    for whole, single in zip((out.global_token, out.patch_tokens, out.logits), (one[0], one[1], one[3]), strict=True):
        torch.testing.assert_close(single, whole[:1], atol=1e-5, rtol=1e-4)
    with torch.enable_grad():
        images = IMAGES.double().requires_grad_()
        exact = dense_forward(copy.deepcopy(model).double(), images)
        exact.logits.square().sum().backward()
    torch.testing.assert_close(exact.patch_tokens.float(), out.patch_tokens, atol=1e-4, rtol=1e-4)
    assert images.grad.abs().sum() > 0


def test_non_square_images_keep_their_grid(name):
    model = build_host(name)
    if name in FIXED:
        with pytest.raises(ValueError, match=r"images are \(24, 56\).*takes \(32, 32\) only"):
            dense_forward(model, WIDE)
        return
    if HOSTS[name].own:
        attach_last(model, top_k=3)
    out = dense_forward(model, WIDE)
    assert (out.grid_hw, out.patch_tokens.shape, out.global_token.shape) == ((3, 7), (2, 21, 16), (2, 16))
    if isinstance(find_adapter(model), HubAdapter):  # others cannot, or fill patches up
        with pytest.raises(ValueError, match=r"images are \(24, 55\) .*, which patches of \(8, 8\) do not fill"):
            dense_forward(model, WIDE[..., 1:])


@pytest.mark.parametrize("name", ["timm-fc-norm", "timm-eva-fc-norm", "open_clip-ln-after"])
def test_pools_read_tokens_after_a_norm_that_stands_after_the_pool(name):
    """Once, not before and after the pool; the mean is taken in the host's own order."""
    model, seen = build_host(name), []
    norm = copy.deepcopy(late_norm(model))
    blocks = model.transformer if isinstance(model, ClipViT) else model.norm
    blocks.register_forward_hook(lambda module, args, output: seen.append(output))
    for pool in ("max", "cls", "mean", "last"):
        out = dense_forward(attach_pool(model, pool, top_k=3), IMAGES)
        tokens = norm(seen[-1])
        read = {
            "max": tokens[:, 1:].amax(1),
            "cls": tokens[:, 0],
            "mean": norm(seen[-1][:, 1:].mean(1)),
            "last": last_pool(tokens[:, 1:], top_k=3),
        }
        torch.testing.assert_close(out.global_token, read[pool])
        torch.testing.assert_close(out.patch_tokens, tokens[:, 1:])


def test_pools_that_a_host_cannot_serve():
    model = build_host("timm-no-cls")
    for kind in ("cls", "attention"):
        with pytest.raises(ValueError, match=r"needs a class token .* use mean, max or last"):
            attach_pool(model, kind)
    with pytest.raises(ValueError, match=r"top_k must be in \[1, 16\]"):
        dense_forward(attach_last(model, top_k=17), IMAGES)


@pytest.mark.parametrize("name", ["torchvision", "timm-fc-norm", "CLIPVisionModel", "clip-tower"])
def test_compiles_to_one_graph_and_follows_a_later_attach(name):
    model = attach_last(build_host(name), top_k=3)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(own_output(compiled), own_output(model), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(dense_forward(compiled, IMAGES).logits, own_output(model))
        assert attach_pool(compiled, "max") is compiled


def test_host_compiled_in_place_is_read_and_repooled():
    model = build_host("torchvision")
    model.compile(backend="eager")
    model(IMAGES)
    assert dense_forward(model, IMAGES).grid_hw == (4, 4)
    attach_pool(model, "max")
    torch.testing.assert_close(model(IMAGES), model.forward(IMAGES), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["timm-eva", "open_clip"])
def test_gradient_checkpointing_gives_the_same_gradients(name):
    plain = attach_last(HOSTS[name].build(), top_k=3)
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing(True)
    with torch.enable_grad():
        for model in (plain, saving):
            own_output(model).square().sum().backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_wrappers_are_looked_through():
    class Wrapper(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        @property
        def host_model(self) -> nn.Module:
            return self.model

    model = build_host("torchvision")
    wrapped = nn.DataParallel(Wrapper(torch.compile(model, backend="eager")))
    assert unwrap_host(wrapped) is model
    assert attach_last(wrapped, top_k=3) is wrapped
    assert pooling_of(model)["top_k"] == 3
    assert torch.equal(dense_forward(wrapped, IMAGES).logits, model(IMAGES))
