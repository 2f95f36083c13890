"""Parts that the object discovery tests share: a ViT that sees brightness, and images whose bright square is known."""

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from object_lists import ImageObjects, ObjectList
from PIL import Image
from torch.nn import functional as F

from last_vit.dino_vit import DinoVisionTransformer

PATCH = 8
# (height, width, object in patches as x1, y1, x2, y2)
SQUARES = [(48, 64, (1, 1, 4, 4)), (44, 60, (5, 3, 7, 5)), (64, 48, (0, 0, 3, 4)), (48, 64, (3, 2, 5, 4))]


class SeesBrightness(DinoVisionTransformer):
    """Patch tokens are mean colours, the class token is white: bright patches score 1, dark ones -1."""

    def __init__(self) -> None:
        super().__init__(img_size=32, patch_size=PATCH, embed_dim=12, depth=1, num_heads=2)

    def forward_features(self, x, attn_mask=None, is_causal=False):
        super().forward_features(x)  # the attention layer runs, too
        colours = F.avg_pool2d(x, PATCH).flatten(2).transpose(1, 2)
        tokens = torch.cat([torch.ones(len(x), 1, 3), colours], dim=1)
        return F.pad(tokens, (0, 9))


def bright_squares(folder: Path) -> ObjectList:
    """Dark images with one bright rectangle of whole patches, which is the object; labels in turn."""
    images = []
    for i, (height, width, corners) in enumerate(SQUARES):
        x1, y1, x2, y2 = (PATCH * corner for corner in corners)
        pixels = np.full((height, width, 3), 20, dtype=np.uint8)
        pixels[y1:y2, x1:x2] = 240
        path = folder / f"{i}.png"
        Image.fromarray(pixels).save(path)
        y2, x2 = min(y2, height), min(x2, width)
        boxes = torch.tensor([[x1, y1, x2, y2]], dtype=torch.float32)
        images.append(ImageObjects(path, (height, width), boxes, torch.tensor([i % 2])))
    return ObjectList(images, ("even", "odd"), Counter())
