"""What is particular to the ViTs of transformers, facebookresearch, OpenAI's clip and timm's rarer classes."""

import pytest
import torch
import transformers as hf
from host_parts import IMAGES, build_host
from hub_parts import HUB, TRANSFORMERS, VIT, TinyDinov3, TinyOpenAIClip, naflex
from timm.models.beit import Beit
from torch import nn

from last_vit.dense import attach_last, attach_pool, dense_forward, pooling_of
from last_vit.pooling import last_pool

pytestmark = pytest.mark.usefixtures("inference")


@pytest.mark.parametrize("name", TRANSFORMERS | HUB)
def test_patch_tokens_are_the_hosts_own(name):
    """As the host itself returns them, with the norm that CLIP applies to its class token only."""
    model = build_host(name)
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


def test_prefix_tokens_have_no_vote():
    for name in (
        "DeiTModel",
        "Dinov2WithRegistersModel",
        "DINOv3ViTModel",
        "dinov2-registers",
        "dinov3",
        "deit-distilled",
        "timm-registers",
    ):
        model = attach_last(build_host(name), top_k=3)
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
        model = attach_last(build_host(name), top_k=3)
        out = dense_forward(model, IMAGES)
        head = model.classifier if name.startswith("D") else model.linear_head
        torch.testing.assert_close(head(torch.cat([out.global_token, out.patch_tokens.mean(1)], dim=1)), out.logits)


def test_masked_autoencoder_is_read_whole_and_trained_masked():
    model = attach_last(build_host("ViTMAEModel"), top_k=2)
    assert torch.equal(dense_forward(model, IMAGES)[0], dense_forward(model, IMAGES)[0])  # nothing drawn
    assert model.config.mask_ratio == 0.75
    tokens = model(IMAGES).last_hidden_state
    torch.testing.assert_close(tokens[:, 0], last_pool(tokens[:, 1:], top_k=2))
    assert tokens.shape == (4, 5, 16)


def test_clip_compares_texts_with_the_pool():
    model = attach_last(build_host("CLIPModel"), top_k=3)
    out = dense_forward(model, IMAGES)
    text = torch.ones(2, 3, dtype=torch.long)
    embeds = model(input_ids=text, pixel_values=IMAGES).image_embeds
    torch.testing.assert_close(embeds, nn.functional.normalize(out.logits))


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
