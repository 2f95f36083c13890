"""Evaluation loops never ask a GPU for a value: under fake tensors, which have none, they run to their end.

`.item()`, `bool(tensor)`, boolean indexing, bincount and the like raise there, as they make the CPU wait on a GPU.
"""

from contextlib import contextmanager

import label_maps
import pytest
import sliding_window
import torch
from label_maps import LabelRule
from miou import MeanIoU
from patch_norms import PatchNorms
from point_in_box_protocol import count_patch_hits
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.nn import functional as F
from torchvision.models import VisionTransformer
from zero_shot_segmenter import ZeroShotSegmenter

from last_vit.dense import attach_pool
from last_vit.metrics import PointInBox, TopK

CPU = torch.device("cpu")


@contextmanager
def fake_tensors():
    with FakeTensorMode(allow_non_fake_inputs=True):  # a model's weights
        yield
    for kept in (sliding_window._stitch_matrix_like, label_maps._on_device):
        kept.cache_clear()  # of fakes


def test_fake_tensors_refuse_to_wait():
    for ask in (lambda x: x.sum().item(), lambda x: bool(x.any()), lambda x: x[x > 0].shape[0] + 0):
        with fake_tensors(), pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
            ask(torch.ones(2))


@pytest.mark.parametrize("hit_rule", ["release", "center"])
@pytest.mark.parametrize("pool", ["cls", "mean"])  # LaSt looks for ties on a CPU, and on a CPU alone
def test_point_in_box(pool, hit_rule):
    model = attach_pool(VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32).eval(), pool)
    with fake_tensors():
        batch = {
            "image": torch.rand(3, 3, 32, 32),
            "box_xyxy": torch.rand(3, 4),
            "image_hw": torch.ones(3, 2, dtype=torch.long),
            "label": torch.zeros(3, dtype=torch.long),
        }
        count_patch_hits(model, [batch, batch], CPU, PointInBox(32, 36, hit_rule), PatchNorms(), TopK())


@pytest.mark.parametrize("prob_threshold", [0.0, 0.3])
def test_segmentation(prob_threshold):
    patch_embedding = torch.rand(6, 3, 8, 8)

    def dense(images):
        maps = F.conv2d(images, patch_embedding, stride=8)
        return maps.flatten(2).transpose(1, 2), tuple(maps.shape[2:])

    with fake_tensors():
        segmenter = ZeroShotSegmenter(
            dense=dense,
            text=torch.rand(5, 6),
            rule=LabelRule([0, 0, 1, 2, 3], 40.0, prob_threshold),
            mean=(0.5,) * 3,
            std=(0.2,) * 3,
            patch_size=8,
            crop=16,
            stride=8,
        )
        metric = MeanIoU(4)
        images = [torch.zeros(3, 24, 30, dtype=torch.uint8), torch.zeros(3, 30, 24, dtype=torch.uint8)]
        for prediction in segmenter(images, [(40, 50), (50, 40)]):
            metric.update(prediction, torch.zeros(prediction.shape, dtype=torch.uint8))
