"""The models of the zero-shot evaluations: a CLIP per --model, its classes in words, and both in records."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from class_names import ClassNames, flatten_names
from torch import Tensor, nn

from last_vit.clip_models import LoadedClip
from last_vit.clip_text import TEMPLATE_SETS, default_cache, encode_class_names, read_templates
from last_vit.evaluation import describe_model
from last_vit.models import ModelArgument, naming


def load_clip_argument(argument: ModelArgument, precision: str, device: torch.device) -> LoadedClip:
    """The CLIP of one --model on a device, its tower run once, so that what does not fit shows before the work."""
    clip = argument.load(device=device, precision=precision)
    with naming(argument):
        if not isinstance(clip, LoadedClip):
            raise ValueError(
                f"zero-shot needs a text tower, so a CLIP, open_clip:ARCH@CHECKPOINT; got {argument.spec!r}"
            )
        read_once(clip, device, embed_images)
    return clip


def read_once(clip: LoadedClip, device: torch.device, read: Callable[[nn.Module, Tensor], Any]) -> None:
    """Read one black image, so that what does not fit shows before the work."""
    side = clip.preprocessing.crop
    with torch.inference_mode():
        read(clip.model, torch.zeros(1, 3, side, side, device=device))


def embed_images(model: nn.Module, images: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, E], not normalised."""
    return model.encode_image(as_weights(model, images))


def as_weights(model: nn.Module, images: Tensor) -> Tensor:
    """Images in the dtype of the convolution that cuts them into patches, with --precision not that of all weights."""
    return images.to(next(weight.dtype for weight in model.visual.parameters() if weight.ndim == 4))


def zero_shot_scores(image_embeddings: Tensor, text: Tensor, class_of_name: Sequence[int]) -> Tensor:
    """Cosine of every image with the best name of every class: float32 [B, C].

    Images are [B, E], of any float dtype and length, `text` float32 [num_names, E] of length 1, on the same device;
    `class_of_name` is from `flatten_names`; every class has a name.
    """
    with torch.autocast(text.device.type, enabled=False):
        by_name = F.normalize(image_embeddings.float(), dim=-1) @ text.T
    index = torch.tensor(class_of_name, device=text.device).expand_as(by_name)
    lowest = by_name.new_full((len(by_name), max(class_of_name) + 1), float("-inf"))
    return lowest.scatter_reduce(1, index, by_name, "amax")


def encode_names(
    clip: LoadedClip, class_names: ClassNames, args: argparse.Namespace, device: torch.device
) -> tuple[Tensor, list[int]]:
    """Text embeddings [num_names, E] on the device, and the class of each name; see `encode_class_names`."""
    names, class_of_name = flatten_names(class_names)
    cache = None if args.no_text_cache else args.text_cache or default_cache()
    text = encode_class_names(clip.model, clip.tokenizer, names, read_templates(args.templates), cache=cache)
    return text.to(device), class_of_name


def describe_clip(argument: ModelArgument, clip: LoadedClip, args: argparse.Namespace) -> dict[str, Any]:
    """A CLIP and its prompts as a record's config holds them."""
    return {
        **describe_model(argument, clip),
        "arch": clip.arch,
        "loading_notes": list(clip.notes),
        "precision": args.precision,
        "templates": args.templates if args.templates in TEMPLATE_SETS else list(read_templates(args.templates)),
    }
