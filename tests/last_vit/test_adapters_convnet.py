"""The ConvNet adapter: GAP of the last feature map is read, and replaced where the host has it."""

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn

from last_vit.dense import attach_last, attach_pool, dense_forward, pooling_of
from last_vit.pooling import last_pool

# name -> width of the last feature map; all on images where the map is 2 x 3. One host of each sort of seam is
# computed, of the others only the shapes.
COMPUTED = {
    "torchvision:shufflenet_v2_x0_5": 1024,
    "timm:test_convnext": 64,
    "timm:test_mambaout": 64,
}
SHAPES_ONLY = {
    "torchvision:resnet18": 512,
    "torchvision:mobilenet_v2": 1280,
    "torchvision:densenet121": 1024,
    "torchvision:mnasnet0_5": 1280,
    "timm:resnet18": 512,
    "timm:densenet121": 1024,
    "timm:convformer_s18": 512,
    "timm:repvit_m0_9": 384,
    "timm:csatv2": 386,
    "timm:efficientvit_b0": 1024,  # MIT's, as its larger form
    "timm:efficientvit_l1": 3072,
    "timm:efficientvit_m0": 192,  # MSRA's
}
STRIDE_64 = ("timm:csatv2", "timm:efficientvit_m0")  # of the last feature map; 32 elsewhere
WITHOUT_GAP = {"torchvision:vgg11": 512, "torchvision:squeezenet1_1": 512}
IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
LARGE_IMAGES = torch.randn(2, 3, 128, 192, generator=torch.Generator().manual_seed(0))


pytestmark = pytest.mark.usefixtures("inference")


def build(name: str, device: str = "cpu") -> nn.Module:
    library, arch = name.split(":")
    make = torchvision.models.get_model if library == "torchvision" else timm.create_model
    with torch.device(device):
        return make(arch, num_classes=7).eval()


@pytest.mark.parametrize("name", SHAPES_ONLY)
def test_gap_is_found(name):
    model, images = build(name, "meta"), (LARGE_IMAGES if name in STRIDE_64 else IMAGES).to("meta")
    keys = list(model.state_dict())
    for kind in ("mean", "max", "last"):
        out = dense_forward(attach_pool(model, kind, top_k=2), images)
        assert out.patch_tokens.shape == (2, 6, SHAPES_ONLY[name])
        assert (out.grid_hw, out.cls_token, out.logits.shape) == ((2, 3), None, (2, 7))
        assert out.global_token.shape == (2, SHAPES_ONLY[name])
        assert pooling_of(model)["pool"] == kind
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("name", COMPUTED)
def test_gap_is_read_and_replaced(name):
    model, images = build(name), IMAGES
    own = model(images)
    out = dense_forward(model, images)
    assert torch.equal(out.logits, own)
    assert out.patch_tokens.shape == (2, 6, COMPUTED[name])
    assert out.grid_hw == (2, 3)
    torch.testing.assert_close(out.global_token, out.patch_tokens.mean(1))
    assert pooling_of(model) == {"pool": "host"}

    # GAP in the adapter may add in another order than the host's kernel.
    torch.testing.assert_close(attach_pool(model, "mean")(images), own, atol=1e-6, rtol=1e-5)
    for kind, expected in (("max", out.patch_tokens.amax(1)), ("last", last_pool(out.patch_tokens, top_k=2))):
        pooled = dense_forward(attach_pool(model, kind, top_k=2), images)
        torch.testing.assert_close(pooled.global_token, expected)
        assert torch.equal(pooled.patch_tokens, out.patch_tokens)
        assert torch.equal(pooled.logits, model(images))
    copied = attach_pool(copy.deepcopy(model), "mean")
    torch.testing.assert_close(copied(images), own, atol=1e-6, rtol=1e-5)
    assert pooling_of(model)["pool"] == "last"


@pytest.mark.parametrize("name", WITHOUT_GAP)
def test_hosts_without_gap_are_read_only(name):
    model = build(name, "meta")
    out = dense_forward(model, IMAGES.to("meta"))
    assert out.patch_tokens.shape[2] == WITHOUT_GAP[name]
    assert out.global_token.shape == (2, WITHOUT_GAP[name])
    with pytest.raises(ValueError, match="no global average pooling to replace"):
        attach_pool(model, "mean")


def test_the_classifier_reads_the_pooled_token():
    densenet = torchvision.models.DenseNet(growth_rate=4, block_config=(1, 1), num_init_features=8, num_classes=3)
    for model, head in ((build("torchvision:resnet18"), "fc"), (densenet.eval(), "classifier")):
        out = dense_forward(attach_last(model, top_k=2), IMAGES)
        torch.testing.assert_close(model.get_submodule(head)(out.global_token), out.logits)


@pytest.mark.parametrize("kind", ["mean", "max", "last"])
def test_gradients_pass_the_in_place_relu_of_densenet(kind):
    model = torchvision.models.DenseNet(growth_rate=4, block_config=(1, 1), num_init_features=8, num_classes=3)
    own = copy.deepcopy(model)
    with torch.enable_grad():
        attach_pool(model, kind, top_k=2)(IMAGES).square().sum().backward()
        own(IMAGES).square().sum().backward()
    assert model.features.conv0.weight.grad.abs().sum() > 0
    if kind == "mean":
        for one, other in zip(model.parameters(), own.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-3)


def test_a_class_token_and_a_widening_gap_are_refused():
    with pytest.raises(ValueError, match=r"this ResNet has none; use mean, max or last"):
        attach_pool(build("timm:resnet18", "meta"), "cls")
    with torch.device("meta"):
        model = timm.create_model("resnet18", num_classes=3, global_pool="catavgmax").eval()
    with pytest.raises(ValueError, match="catavgmax"):
        attach_pool(model, "mean")
    with pytest.raises(ValueError, match=r"reads \(2, 1024\) instead of one global token \[B, 512\]"):
        dense_forward(model, IMAGES.to("meta"))


def test_compiles_to_one_graph():
    model = attach_last(build("timm:test_convnext"), top_k=2)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(IMAGES), model(IMAGES), atol=1e-5, rtol=1e-4)
