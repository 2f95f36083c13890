"""Adapters on tiny ViT hosts: only the pooling changes, and a dense pass reads what the head reads."""

import copy

import pytest
import torch
from host_parts import HOSTS, IMAGES, Host, first, late_norm, tower_of
from open_clip.transformer import VisionTransformer as ClipViT
from torch import nn

from last_vit.adapters import unwrap_host
from last_vit.dense import attach_last, attach_pool, dense_forward, pooling_of
from last_vit.pooling import last_pool

pytestmark = pytest.mark.usefixtures("inference")


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> Host:
    return HOSTS[request.param]


def run(model: nn.Module) -> torch.Tensor:
    return first(tower_of(model)(IMAGES))


def build(host: Host) -> nn.Module:
    return host.build().eval()


def test_attaching_changes_the_pool_and_leaves_no_other_trace(host):
    model = build(host)
    keys, modules = list(model.state_dict()), [name for name, _ in model.named_modules()]
    assert pooling_of(model) == {"pool": "host"}
    own = run(model)
    assert attach_last(model, top_k=3, sigma=2.0, variant="paper") is model
    assert pooling_of(model) == {"pool": "last", "top_k": 3, "variant": "paper", "sigma": 2.0}
    last = run(model)
    assert not torch.allclose(last, own)
    assert repr(model).splitlines()[1].strip() == "pool=last, top_k=3, variant=paper, sigma=2.0"
    copied = copy.deepcopy(model)
    assert torch.equal(run(copied), last)
    attach_pool(copied, "max")  # a copy has its own pool
    assert "pool=max" in repr(copied)
    assert (pooling_of(model)["pool"], pooling_of(copied)["pool"]) == ("last", "max")
    assert torch.equal(run(model), last)
    assert list(model.state_dict()) == keys
    assert [name for name, _ in model.named_modules()] == modules
    attach_pool(model, host.own)  # the host's own pool gives its logits bit for bit
    assert pooling_of(model) == {"pool": host.own, "top_k": None, "variant": None, "sigma": None}
    assert torch.equal(run(model), own)


@pytest.mark.parametrize("pool", [None, "last"])
def test_dense_forward_reads_what_the_head_reads(host, pool):
    model = build(host)
    if pool:
        attach_pool(model, pool, top_k=3)
    out = dense_forward(model, IMAGES)
    assert torch.equal(out.logits, run(model))
    torch.testing.assert_close(host.head(model, out.global_token), out.logits)
    assert out.grid_hw == (4, 4)
    assert out.patch_tokens.shape == (8, 16, 16)
    assert (out.cls_token is not None) == host.has_cls
    if pool:
        assert torch.equal(out.global_token, last_pool(out.patch_tokens, top_k=3))
    elif late_norm(model) is None:
        torch.testing.assert_close(out.global_token, out.cls_token if host.own == "cls" else out.patch_tokens.mean(1))
    assert torch.equal(run(model), out.logits)  # the reading hooks are gone
    if not pool:
        assert not {"pool", "_global_pool"} & set(vars(tower_of(model)))


@pytest.mark.parametrize("name", ["timm-fc-norm", "timm-eva-fc-norm", "open_clip-ln-after"])
def test_pools_read_tokens_after_a_norm_that_stands_after_the_pool(name):
    """Once, not before and after the pool; the mean is taken in the host's own order."""
    model, seen = build(HOSTS[name]), []
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
    model = build(HOSTS["timm-no-cls"])
    for kind in ("cls", "attention"):
        with pytest.raises(ValueError, match=r"needs a class token .* use mean, max or last"):
            attach_pool(model, kind)
    with pytest.raises(ValueError, match=r"top_k must be in \[1, 16\]"):
        dense_forward(attach_last(model, top_k=17), IMAGES)


def test_one_image_is_a_slice_and_gradients_reach_the_host(host):
    model = attach_last(build(host), top_k=3)
    batch, one = dense_forward(model, IMAGES), dense_forward(model, IMAGES[:1])
    torch.testing.assert_close(one.global_token, batch.global_token[:1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one.patch_tokens, batch.patch_tokens[:1], atol=1e-5, rtol=1e-4)
    with torch.enable_grad():
        dense_forward(model, IMAGES).logits.square().sum().backward()
    patch_embed = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert patch_embed.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["torchvision", "timm-fc-norm"])  # a hook, a method and a hook
def test_compiles_to_one_graph_and_follows_a_later_attach(name):
    model = attach_last(build(HOSTS[name]), top_k=3)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(IMAGES), model(IMAGES), atol=1e-5, rtol=1e-4)
    assert attach_pool(compiled, "max") is compiled
    torch.testing.assert_close(compiled(IMAGES), model(IMAGES), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(dense_forward(compiled, IMAGES).logits, model(IMAGES))


def test_host_compiled_in_place_is_read_and_repooled():
    model = build(HOSTS["torchvision"])
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
            run(model).square().sum().backward()
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

    model = build(HOSTS["torchvision"])
    wrapped = nn.DataParallel(Wrapper(torch.compile(model, backend="eager")))
    assert unwrap_host(wrapped) is model
    assert attach_last(wrapped, top_k=3) is wrapped
    assert pooling_of(model)["top_k"] == 3
    assert torch.equal(dense_forward(wrapped, IMAGES).logits, model(IMAGES))
