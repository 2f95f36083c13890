"""Small parts for the tests of ov_detection/fvit: a stand-in for the frozen CLIP, class embeddings, inputs."""

import torch
from class_embeddings import ClassEmbeddings
from detectron2.structures import BitMasks, Boxes, Instances
from fvit.frozen_clip import ClipFeatures
from fvit.fvit_model import build_fvit
from torch import nn
from torch.nn import functional as F

TINY_CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 4, "width": 16, "head_width": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
NAMES = ("cat", "dog", "tree", "lamp")
BASE = (True, True, True, False)
SMALL_RPN = {"batch_size_per_image": 64, "pre_nms_topk": (100, 100), "post_nms_topk": (30, 30)}
SMALL_HEADS = {"batch_size_per_image": 32, "conv_width": 16, "num_convs": 2}


class StubClip(nn.Module):
    """A frozen tower's interface over one fixed random projection of each patch."""

    def __init__(self, width=16, embed_dim=8, patch_size=16):
        super().__init__()
        self.width, self.embed_dim, self.patch_size, self.source = width, embed_dim, patch_size, {}
        generator = torch.Generator().manual_seed(5)
        self._filters = torch.randn(4 * width + embed_dim, 3, patch_size, patch_size, generator=generator) / patch_size

    def forward(self, images, with_dense=True):
        with torch.no_grad():
            *blocks, dense = F.conv2d(images, self._filters, stride=self.patch_size).split(
                [self.width] * 4 + [self.embed_dim], dim=1
            )
        return ClipFeatures(tuple(blocks), F.normalize(dense, dim=1) if with_dense else None)


def vocabulary(names=NAMES, width=8, seed=0, background=True):
    """Nearly orthogonal rows: the class features that are compared with them end in a ReLU."""
    rows = torch.randn(len(names) + 1, width, generator=torch.Generator().manual_seed(seed)) * 0.1
    rows += torch.eye(len(names) + 1, width)
    return ClassEmbeddings(tuple(names), rows[:-1], rows[-1] if background else None, "test tower", "none")


def is_base(base=BASE):
    return torch.tensor(base)


def small_fvit(patch_size=16, seed=0, rpn=None, roi_heads=None, clip=None, **arguments):
    """A detector of a few thousand weights, in training mode."""
    torch.manual_seed(seed)
    clip = clip or StubClip(patch_size=patch_size)
    return build_fvit(
        clip,
        vocabulary(width=clip.embed_dim),
        is_base(),
        channels=16,
        rpn={**SMALL_RPN, **(rpn or {})},
        roi_heads={**SMALL_HEADS, **(roi_heads or {})},
        **arguments,
    )


def sample(height=96, width=96, boxes=((8, 8, 56, 72), (40, 16, 88, 60)), classes=(0, 2), seed=0, masks=False):
    """One detectron2 input: noise with a bright rectangle per object."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(3, height, width, generator=generator) * 60
    bitmaps = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for place, ((x0, y0, x1, y1), label) in enumerate(zip(boxes, classes, strict=True)):
        image[label % 3, y0:y1, x0:x1] += 150
        bitmaps[place, y0:y1, x0:x1] = True
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.long)
    if masks:
        instances.gt_masks = BitMasks(bitmaps)
    return {"image": image, "height": height, "width": width, "instances": instances, "file_name": f"image{seed}.jpg"}


def roi_align64(features, box, size, stride):
    """RoIAlign of one xyxy box, point by point: [C, h, w] float64 -> [C, size, size]; adaptive grid, aligned."""
    height, width = features.shape[1:]
    x0, y0, x1, y1 = (float(side) / stride - 0.5 for side in box)
    cell_w, cell_h = (x1 - x0) / size, (y1 - y0) / size
    nx, ny = max(-int(-cell_w // 1), 0), max(-int(-cell_h // 1), 0)
    out = torch.zeros(features.shape[0], size, size, dtype=torch.float64)
    for row in range(size):
        for column in range(size):
            for iy in range(ny):
                for ix in range(nx):
                    y = y0 + cell_h * (row + (iy + 0.5) / ny)
                    x = x0 + cell_w * (column + (ix + 0.5) / nx)
                    if y < -1 or y > height or x < -1 or x > width:
                        continue
                    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
                    top, left = int(y), int(x)
                    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
                    fy, fx = y - top, x - left
                    value = (1 - fy) * (1 - fx) * features[:, top, left] + (1 - fy) * fx * features[:, top, right]
                    value += fy * (1 - fx) * features[:, bottom, left] + fy * fx * features[:, bottom, right]
                    out[:, row, column] += value / (nx * ny)
    return out
