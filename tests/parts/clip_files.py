"""CLIP checkpoint files as their makers write them, with random values and tiny towers."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from clip_towers_parts import randomised
from timm.models.eva import Eva
from torch import Tensor, nn

from last_vit.clip_models import resolve_architecture

TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "patch_size": 8, "width": 24, "head_width": 12, "layers": 2}
# EVA-02-CLIP in small; timm has no such size, so that `tiny_eva` makes it
EVA_VISION = {"image_size": 32, "timm_model_name": "eva02_tiny_clip", "timm_pool": "token", "timm_proj": None}
_EVA_NAMES = {
    "mlp.norm.": "mlp.ffn_ln.", "attn.norm.": "attn.inner_attn_ln.", "mlp.fc1_g.": "mlp.w1.",
    "mlp.fc1_x.": "mlp.w2.", "mlp.fc2.": "mlp.w3.", "attn.q_proj.bias": "attn.q_bias",
    "attn.v_proj.bias": "attn.v_bias", "visual.trunk.": "visual.",
}  # fmt: skip
# what OpenAI's files keep in half precision
_HALF = ("conv1.weight", "in_proj_weight", "in_proj_bias", "proj.weight", "proj.bias", "fc.weight", "fc.bias", "proj")


@pytest.fixture
def registry(monkeypatch):
    """open_clip's list of architectures, restored afterwards."""
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", list(open_clip.factory._MODEL_CONFIG_PATHS))


@pytest.fixture
def tiny_eva(monkeypatch):
    """Lets open_clip build `EVA_VISION`."""

    def create_model(name, num_classes, global_pool, pretrained, **_):
        return Eva(
            img_size=32, patch_size=8, num_classes=num_classes, global_pool=global_pool, embed_dim=24, depth=2,
            num_heads=2, mlp_ratio=2.0, qkv_fused=False, swiglu_mlp=True, scale_mlp=True, scale_attn_inner=True,
            use_rot_pos_emb=True, ref_feat_shape=(6, 6),
        )  # fmt: skip

    monkeypatch.setattr("open_clip.timm_model.timm.create_model", create_model)


def config_file(folder: Path, name: str = "tiny", vision=VISION, text=TEXT, **changes) -> str:
    """A model configuration; returns its path."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"embed_dim": 12, "vision_cfg": vision, "text_cfg": text, **changes}))
    return str(path)


def random_clip(config: str, seed: int = 0) -> nn.Module:
    """A model of a configuration, no two weights alike."""
    return randomised(open_clip.create_model(resolve_architecture(config)), seed)


def as_openai(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Half precision where OpenAI has it, and the three attributes."""
    weights = {k: v.half() if k.endswith(_HALF) or k == "text_projection" else v for k, v in state_dict.items()}
    attributes = {"input_resolution": 32, "context_length": 8, "vocab_size": 64}
    return {**weights, **{name: torch.tensor(value) for name, value in attributes.items()}}


class Node(nn.Module):
    """A module that only holds tensors and modules, for archives."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def archive(path: Path, state_dict: dict[str, Tensor]) -> Path:
    """A TorchScript archive with exactly these weights; integers are buffers."""
    root = Node()
    for name, value in state_dict.items():
        *folders, leaf = name.split(".")
        node = root
        for folder in folders:
            if folder not in node._modules:
                node.add_module(folder, Node())
            node = node._modules[folder]
        if value.is_floating_point():
            node.register_parameter(leaf, nn.Parameter(value.clone(), requires_grad=False))
        else:
            node.register_buffer(leaf, value)
    torch.jit.script(root).save(str(path))
    return path


def as_eva(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's names -> those of EVA-CLIP's own files, with their rotary tables."""
    weights = {}
    for old_name, value in state_dict.items():
        name = old_name
        for ours, theirs in _EVA_NAMES.items():
            name = name.replace(ours, theirs) if old_name.startswith("visual.") else name
        weights[name] = value
    for place in ("visual.rope", "visual.blocks.0.attn.rope", "visual.blocks.1.attn.rope"):
        weights |= {f"{place}.freqs_cos": torch.rand(16, 12), f"{place}.freqs_sin": torch.rand(16, 12)}
    return weights


def same(model: nn.Module, state_dict: dict[str, Tensor]) -> bool:
    """Whether a model holds exactly these weights."""
    own = model.state_dict()
    return own.keys() == state_dict.keys() and all(torch.equal(own[name], state_dict[name].float()) for name in own)
