"""Small CLIPs for tests: open_clip's own classes, a few thousand parameters beside the token embedding."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIP

VOCABULARY = 49408  # of open_clip's tokenizer
_VISION = {"image_size": 32, "patch_size": 8, "width": 24, "head_width": 12, "layers": 2}
_TEXT = {"context_length": 77, "vocab_size": VOCABULARY, "width": 16, "heads": 2, "layers": 1}


def tiny_clip(seed: int = 0, quick_gelu: bool = False, text: dict[str, Any] | None = None, **visual: Any) -> CLIP:
    """A CLIP for 32 x 32 images: 4 x 4 patches of 24 channels, embeddings of 16, random weights, in eval mode.

    Args:
        seed: Of the weights.
        quick_gelu: The activation of both towers.
        text: Other settings of the text tower.
        visual: Other settings of the image tower.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIP(16, {**_VISION, **visual}, {**_TEXT, **(text or {})}, quick_gelu=quick_gelu)
        for name, weight in model.named_parameters():
            if weight.ndim == 1 and name != "logit_scale":
                torch.nn.init.normal_(weight, 1.0 if "ln" in name and name.endswith("weight") else 0.0, 0.2)
    return model.eval()


def tiny_tokenizer() -> open_clip.tokenizer.SimpleTokenizer:
    """open_clip's own, as `get_tokenizer` gives it to a CLIP without text_cfg of its own."""
    return open_clip.get_tokenizer("ViT-B-32")


def write_clip(folder: Path, name: str = "clip_tiny", model: CLIP | None = None) -> tuple[Path, Path]:
    """`model`, a `tiny_clip()`, as a user has it: the paths of a model config and of a trainer's checkpoint."""
    config, checkpoint = folder / f"{name}.json", folder / f"{name}.pt"
    config.write_text(json.dumps({"embed_dim": 16, "vision_cfg": _VISION, "text_cfg": _TEXT}))
    weights = {f"module.{key}": each for key, each in (model or tiny_clip()).state_dict().items()}
    torch.save({"epoch": 1, "name": name, "state_dict": weights}, checkpoint)
    return config, checkpoint
