"""What kind of CLIP a state dict is, read from names and shapes, so that two can be compared in words."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_TEXT_DEFAULTS = {"width": 512, "layers": 12}
_IMAGE_DEFAULTS = {"width": 768, "layers": 12, "patch_size": 16}


def describe_clip(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Kind and sizes of both towers, under readable names; what cannot be told is left out.

    Args:
        state_dict: Of a whole CLIP in open_clip's names, also before EVA's are rewritten.

    Returns:
        For example {"image tower": "ViT", "image width": 768, "image blocks": 12, "patch": 16, "text tower":
        "transformer", "text width": 512, "text blocks": 12, "vocabulary": 49408, "embedding": 512}.
    """
    found = {**_image_tower(state_dict), **_text_tower(state_dict)}
    return {name: value for name, value in found.items() if value not in (None, 0)}


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Names under which two descriptions say different things."""
    return [name for name in first if name in second and first[name] != second[name]]


def in_words(description: Mapping[str, Any]) -> str:
    """One line: `image tower ViT, image width 768, ...`."""
    return ", ".join(f"{name} {value}" for name, value in description.items())


def fitting_architectures(description: Mapping[str, Any]) -> list[str]:
    """open_clip's architectures with the described sizes, as far as their configurations tell."""
    import open_clip

    fitting = []
    for arch in open_clip.list_models():
        config = open_clip.get_model_config(arch)
        theirs = _describe_config(config)
        known = [name for name in description if name in theirs]
        if all(name in known for name in ("image tower", "embedding")) and not differing(description, theirs):
            fitting.append(arch)
    return fitting


def _image_tower(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    if "visual.conv1.weight" in state_dict and "visual.class_embedding" in state_dict:
        width, _, patch, _ = state_dict["visual.conv1.weight"].shape
        blocks = _count(state_dict, r"visual\.transformer\.resblocks\.(\d+)\.")
        proj = state_dict.get("visual.proj")
        return _sizes("ViT", width, blocks, patch) | {"embedding": None if proj is None else proj.shape[1]}
    for prefix in ("visual.trunk.", "visual."):
        if f"{prefix}patch_embed.proj.weight" in state_dict:
            width, _, patch, _ = state_dict[f"{prefix}patch_embed.proj.weight"].shape
            pattern = re.escape(prefix) + r"blocks\.(\d+)\."
            is_eva = any(
                re.match(pattern + r"(attn\.(q_proj|q_bias|norm|inner_attn_ln)|mlp\.w1)", n) for n in state_dict
            )
            heads = [f"{prefix}head.weight", "visual.head.proj.weight", "visual.head.mlp.fc2.weight"]
            head = next((state_dict[name] for name in heads if name in state_dict), None)
            found = _sizes("EVA" if is_eva else "timm ViT", width, _count(state_dict, pattern), patch)
            return found | {"embedding": None if head is None else head.shape[0]}
    if any(name.startswith("visual.layer1.") for name in state_dict):
        return {"image tower": "ResNet"}
    if any(name.startswith("visual.") for name in state_dict):
        return {"image tower": "of another kind"}
    return {"image tower": "none"}


def _text_tower(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    prefix = "text." if any(name.startswith("text.") for name in state_dict) else ""
    if f"{prefix}token_embedding.weight" not in state_dict:
        return {"text tower": "of another kind" if prefix else "none"}
    vocabulary, width = state_dict[f"{prefix}token_embedding.weight"].shape
    blocks = _count(state_dict, rf"{re.escape(prefix)}transformer\.resblocks\.(\d+)\.")
    return {"text tower": "transformer", "text width": width, "text blocks": blocks, "vocabulary": vocabulary}


def _sizes(kind: str, width: int, blocks: int, patch: int) -> dict[str, Any]:
    return {"image tower": kind, "image width": width, "image blocks": blocks, "patch": patch}


def _count(state_dict: Mapping[str, Tensor], pattern: str) -> int:
    indices = [int(match[1]) for name in state_dict if (match := re.match(pattern, name))]
    return max(indices) + 1 if indices else 0


def _describe_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """As `describe_clip`, from a model configuration; a timm tower's width and depth are not in it."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    name = vision.get("timm_model_name")
    if name is None and isinstance(vision.get("layers", 12), int):
        image = _IMAGE_DEFAULTS | vision
        found = _sizes("ViT", image["width"], image["layers"], image["patch_size"])
    elif name is not None and (patch := re.search(r"patch(\d+)", name)):
        found = {"image tower": "EVA" if "eva" in name else "timm ViT", "patch": int(patch[1])}
    else:
        return {}
    if "hf_model_name" not in text:
        text = _TEXT_DEFAULTS | text
        found |= {"text width": text["width"], "text blocks": text["layers"]}
    return found | {"embedding": config["embed_dim"]}
