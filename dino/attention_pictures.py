"""What the class token attends to in the last layer, drawn one picture per head: the work of visualize_attention.py."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from frozen_features import load_backbone
from last_attention import find_attention_layer, last_attention
from matplotlib.image import imsave
from object_discovery import attention_mask
from scipy.ndimage import binary_erosion
from torch import Tensor
from torchvision.transforms import functional

from last_vit.data.image_files import IMAGE_SUFFIXES, load_rgb
from last_vit.models import TrainedModel
from last_vit.runtime import select_device

_MASK_RGB = (230, 159, 0)  # orange of Okabe and Ito's palette


def run(args: argparse.Namespace) -> None:
    """Read the backbone, then draw every image."""
    if len(args.image_size) > 2:
        raise ValueError(f"--image_size is one number or two, height and width, got {len(args.image_size)}")
    if min(args.image_size) < args.patch_size:
        raise ValueError(f"--image_size {min(args.image_size)} is less than a patch of {args.patch_size} pixels")
    if args.threshold is not None and not 0 < args.threshold <= 1:
        raise ValueError(f"--threshold is a share of the attention in (0, 1], got {args.threshold}")
    folders = picture_folders(args.image_path, args.output_dir)
    device = select_device(args.device)
    trained = load_backbone(args)
    find_attention_layer(trained.model)
    trained.model.to(device)
    for path, folder in folders.items():
        pixels, attention = read_attention(trained, path, args.image_size, args.patch_size, device)
        print(f"written {len(draw(folder, pixels, attention, args.threshold))} pictures to {folder}")


def picture_folders(image_path: Path, output_dir: Path) -> dict[Path, Path]:
    """Image -> folder for its pictures: `output_dir` for one image; below it, after its name, for those of a folder."""
    if image_path.is_file():
        return {image_path: output_dir}
    if not image_path.is_dir():
        raise FileNotFoundError(f"no image and no folder at --image_path {image_path}")
    paths = sorted(path for path in image_path.iterdir() if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"no image in --image_path {image_path}: looked for {', '.join(IMAGE_SUFFIXES)}")
    stems = [path.stem for path in paths]
    return {path: output_dir / (path.stem if stems.count(path.stem) == 1 else path.name) for path in paths}


@torch.inference_mode()
def read_attention(
    trained: TrainedModel, path: Path, image_size: Sequence[int], patch_size: int, device: torch.device
) -> tuple[np.ndarray, Tensor]:
    """One image as the model sees it, uint8 [H, W, 3], and what the class token attends to, float32 [heads, h, w].

    It is resized to `image_size` (height and width, or the shorter side) and cut to whole patches.
    """
    resized = np.array(functional.resize(load_rgb(path), list(image_size)))
    height, width = (side - side % patch_size for side in resized.shape[:2])
    pixels = resized[:height, :width]
    prep = trained.preprocessing
    image = functional.normalize(functional.to_tensor(pixels), prep.mean, prep.std)
    found = last_attention(trained.model, image[None].to(device))
    if found.cls_attention is None:
        raise ValueError("this model has no class token, so there is no attention of it to draw")
    return pixels, found.cls_attention[0].unflatten(1, found.output.grid_hw).cpu()


def draw(folder: Path, pixels: np.ndarray, attention: Tensor, threshold: float | None) -> list[Path]:
    """Write the pictures of what `read_attention` gives, with masks of a share `threshold`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {"img.png": pixels}
    for head, each in enumerate(attention):
        pictures[f"attn-head{head}.png"] = _enlarge(each, pixels)
        if threshold is not None:
            mask = attention_mask(each.flatten(), threshold).reshape(each.shape)
            pictures[f"mask_th{threshold}_head{head}.png"] = _overlay(pixels, _enlarge(mask, pixels))
    for name, picture in pictures.items():
        imsave(folder / name, np.ascontiguousarray(picture), cmap="inferno")
    return [folder / name for name in pictures]


def _enlarge(grid: Tensor, pixels: np.ndarray) -> np.ndarray:
    """A value per patch [h, w] as a value per pixel [H, W]."""
    rows, columns = (length // side for length, side in zip(pixels.shape[:2], grid.shape, strict=True))
    return grid.repeat_interleave(rows, 0).repeat_interleave(columns, 1).numpy()


def _overlay(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image with a mask [H, W] half covering it, and its outline."""
    picture = np.where(mask[:, :, None], pixels * 0.5 + np.array(_MASK_RGB) * 0.5, pixels)
    outline = mask & ~binary_erosion(mask, iterations=2)
    return np.where(outline[:, :, None], _MASK_RGB, picture).astype(np.uint8)
