"""Adapters on transformers' ViTs and on the classes that DINO and CLIP publish: as test_adapters.py, on more hosts."""

import copy

import pytest
import torch
import transformers as hf
from hub_parts import HUB, TIMM, TRANSFORMERS, VIT, TinyDinov3, TinyOpenAIClip, naflex
from layer_tokens import count_layers, layer_tokens
from timm.models.beit import Beit
from torch import Tensor, nn

from last_vit.adapters import find_adapter
from last_vit.adapters.hub_vit import HubAdapter
from last_vit.dense import attach_last, attach_pool, dense_forward, pooling_of
from last_vit.pooling import last_pool

HOSTS = TRANSFORMERS | HUB | TIMM
LEARNED = ("SiglipVisionModel", "SiglipModel")  # to be read only
MEAN = (
    "CLIPForImageClassification",
    "SiglipForImageClassification",
    "relpos",
    "naflex-gap",
)  # all others read the class token
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
WIDE = torch.randn(2, 3, 24, 56, generator=torch.Generator().manual_seed(1))


pytestmark = pytest.mark.usefixtures("inference")


@pytest.fixture(params=HOSTS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def build(name: str) -> nn.Module:
    """A tiny host whose tokens and norms are far from their initial values."""
    model = HOSTS[name]().eval()
    for key, weight in model.named_parameters():
        if any(part in key for part in ("norm", "token", "embedding", "head.")):
            nn.init.normal_(weight)
    return model


def own_output(model: nn.Module, images: Tensor = IMAGES) -> Tensor:
    """What a user of the host reads."""
    if hasattr(model, "get_image_features"):
        return model.get_image_features(images).pooler_output
    if hasattr(model, "visual"):
        return model.visual(images)
    if isinstance(model, hf.ViTMAEModel):
        model.config.mask_ratio = 0.0
        return model(images, noise=torch.arange(16.0).expand(4, -1)).last_hidden_state[:, 0]
    output = model(images)
    if isinstance(output, Tensor):
        return output
    read = next((key for key in ("logits", "image_embeds", "pooler_output") if key in output), None)
    return output[read] if read else output.last_hidden_state[:, 0]


def test_attaching_changes_the_pool_and_leaves_no_other_trace(name):
    model = build(name)
    keys, modules = list(model.state_dict()), [path for path, _ in model.named_modules()]
    own = own_output(model)
    if name in LEARNED:
        with pytest.raises(ValueError, match=r"learned attention pool.*dense_forward works"):
            attach_last(model, top_k=3)
        return
    attach_last(model, top_k=3)
    last = own_output(model)
    assert not torch.allclose(last, own, atol=1e-3)
    copied = copy.deepcopy(model)
    assert torch.equal(own_output(copied), last)
    attach_pool(copied, "max")
    assert (pooling_of(model)["pool"], pooling_of(copied)["pool"]) == ("last", "max")
    assert torch.equal(own_output(model), last)
    assert list(model.state_dict()) == keys
    assert [path for path, _ in model.named_modules()] == modules
    kind = "mean" if name in MEAN else "cls"
    found = own_output(attach_pool(model, kind))
    assert torch.allclose(found, own, atol=1e-6) if kind == "mean" else torch.equal(found, own)


@pytest.mark.parametrize("pool", [None, "last"])
def test_dense_forward_reads_what_the_head_reads(name, pool):
    model = build(name)
    if pool and name not in LEARNED:
        attach_pool(model, pool, top_k=3)
    out, one = dense_forward(model, IMAGES), dense_forward(model, IMAGES[:1])
    assert torch.equal(out.logits, own_output(model))
    assert (out.grid_hw, out.patch_tokens.shape) == ((4, 4), (4, 16, 16))
    assert (out.cls_token is None) == (name.startswith("Siglip") or name in ("relpos", "naflex-gap"))
    if name not in LEARNED:
        own = out.patch_tokens.mean(1) if name in MEAN else out.cls_token
        torch.testing.assert_close(out.global_token, last_pool(out.patch_tokens, top_k=3) if pool else own)
    for whole, single in zip((out.global_token, out.patch_tokens, out.logits), (one[0], one[1], one[3]), strict=True):
        torch.testing.assert_close(single, whole[:1], atol=1e-5, rtol=1e-4)
    with torch.enable_grad():
        exact = dense_forward(copy.deepcopy(model).double(), IMAGES.double().requires_grad_())
        assert exact.logits.requires_grad
    torch.testing.assert_close(exact.patch_tokens.float(), out.patch_tokens, atol=1e-4, rtol=1e-4)


def test_patch_tokens_are_the_hosts_own(name):
    """As the host itself returns them, with the norm that CLIP applies to its class token only."""
    model = build(name)
    patches = dense_forward(model, IMAGES).patch_tokens
    if name.startswith("dinov2") and name != "dinov2-linear":
        torch.testing.assert_close(model(IMAGES, is_training=True)["x_norm_patchtokens"], patches)
    tower = getattr(model, "vision_model", getattr(model, "base_model", None))
    if tower is None or isinstance(model, hf.ViTMAEModel | hf.DINOv3ViTModel):
        return
    tokens = tower(IMAGES).last_hidden_state[:, -16:]
    if name in ("CLIPModel", "CLIPVisionModel", "CLIPVisionModelWithProjection"):
        tokens = tower.post_layernorm(tokens)
    torch.testing.assert_close(tokens, patches)


def test_non_square_images_keep_their_grid(name):
    model = build(name)
    if name in ("clip", "clip-tower", "beit", "relpos", "relpos-token", "deit-distilled"):
        with pytest.raises(ValueError, match=r"images are \(24, 56\).*takes \(32, 32\) only"):
            dense_forward(model, WIDE)
        return
    if name not in LEARNED:
        attach_last(model, top_k=3)
    out = dense_forward(model, WIDE)
    assert (out.grid_hw, out.patch_tokens.shape, out.global_token.shape) == ((3, 7), (2, 21, 16), (2, 16))
    if isinstance(find_adapter(model), HubAdapter):  # others cannot, or fill patches up
        with pytest.raises(ValueError, match=r"images are \(24, 55\) .*, which patches of \(8, 8\) do not fill"):
            dense_forward(model, WIDE[..., 1:])


def test_layers_end_in_the_patch_tokens(name):
    model = build(name)
    before = sum(len(module._forward_hooks) for module in model.modules())
    tokens = layer_tokens(model, IMAGES)
    has_final_norm = name != "CLIPForImageClassification"
    assert count_layers(model) == (2, has_final_norm) == (len(tokens.layers), tokens.has_final_norm)
    assert {layer.shape for layer in tokens.layers} == {(4, 16, 16)}
    norms = [module for path, module in model.named_modules() if path.endswith(("layernorm", "norm", "ln_post"))]
    found = [norm(tokens.layers[-1]) for norm in norms if isinstance(norm, nn.LayerNorm)]
    found = found if has_final_norm else [tokens.layers[-1]]
    assert any(torch.allclose(each, tokens.output.patch_tokens, atol=1e-5) for each in found)
    assert sum(len(module._forward_hooks) for module in model.modules()) == before


def test_prefix_tokens_have_no_vote():
    for name in (
        "DeiTModel",
        "Dinov2WithRegistersModel",
        "DINOv3ViTModel",
        "dinov2-registers",
        "dinov3",
        "deit-distilled",
    ):
        model = attach_last(build(name), top_k=3)
        norm = model.layernorm if hasattr(model, "layernorm") else model.norm
        out = dense_forward(model, IMAGES)
        loud = torch.zeros(1, 16 + (2 if name.lower().startswith("deit") else 5), 1)
        loud[:, :-16] = 1e6
        with norm.register_forward_hook(lambda _, args, tokens, loud=loud: tokens + loud, prepend=True):
            assert torch.equal(dense_forward(model, IMAGES).global_token, out.global_token)


def test_norms_after_the_mean_of_timm_come_first_for_other_pools():
    """And a NaFlexVit does not pool padding."""
    for model in (
        Beit(img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2),
        naflex(fc_norm=True, global_pool="avg"),
    ):
        nn.init.normal_(model.eval().fc_norm.weight)
        own = model(IMAGES)
        torch.testing.assert_close(attach_pool(model, "mean")(IMAGES), own)
        out = dense_forward(attach_last(model, top_k=3), IMAGES)
        torch.testing.assert_close(out.global_token, last_pool(out.patch_tokens, top_k=3))
        torch.testing.assert_close(model.head(out.global_token), out.logits)
    with pytest.raises(ValueError, match="padded to one number of patches"):
        model.forward_head(torch.zeros(1, 19, 16), patch_valid=torch.arange(16)[None] < 9)


def test_half_of_dinov2s_classifier_stays_the_mean():
    for name in ("Dinov2ForImageClassification", "dinov2-linear"):
        model = attach_last(build(name), top_k=3)
        out = dense_forward(model, IMAGES)
        head = model.classifier if name.startswith("D") else model.linear_head
        torch.testing.assert_close(head(torch.cat([out.global_token, out.patch_tokens.mean(1)], dim=1)), out.logits)


def test_masked_autoencoder_is_read_whole_and_trained_masked():
    model = attach_last(build("ViTMAEModel"), top_k=2)
    assert torch.equal(dense_forward(model, IMAGES)[0], dense_forward(model, IMAGES)[0])  # nothing drawn
    assert model.config.mask_ratio == 0.75
    tokens = model(IMAGES).last_hidden_state
    torch.testing.assert_close(tokens[:, 0], last_pool(tokens[:, 1:], top_k=2))
    assert tokens.shape == (4, 5, 16)


def test_clip_compares_texts_with_the_pool():
    model = attach_last(build("CLIPModel"), top_k=3)
    out = dense_forward(model, IMAGES)
    text = torch.ones(2, 3, dtype=torch.long)
    embeds = model(input_ids=text, pixel_values=IMAGES).image_embeds
    torch.testing.assert_close(embeds, nn.functional.normalize(out.logits))


def test_compiles_to_one_graph():
    for name in ("CLIPVisionModel", "clip-tower"):
        model = attach_last(build(name), top_k=3)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(own_output(compiled), own_output(model), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (TinyDinov3(untied=True), "class token and its patches in separate calls"),
        (TinyOpenAIClip(nn.Identity()), "OpenAI clip's Identity pools with a learned attention"),
        (hf.ViTForMaskedImageModeling(hf.ViTConfig(**VIT)), r"(?s)no adapter.*transformers ViT"),
        (hf.SwinModel(hf.SwinConfig(image_size=32, embed_dim=8, depths=[1], num_heads=[1])), "no adapter for trans"),
    ],
)
def test_hosts_without_a_place_to_pool_say_so(model, message):
    for call in (pooling_of, lambda model: attach_pool(model, "mean"), lambda model: dense_forward(model, IMAGES)):
        with pytest.raises(ValueError, match=message):
            call(model)
