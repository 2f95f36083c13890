"""The pass over images: perfect boxes where the object is what the model sees, whatever the batches; times."""

import time

import pytest
import torch
from discover_boxes import Stopwatch, discover_boxes, feature_reader
from discovery_images import DiscoveryImages, build_native_loader
from discovery_methods import dino_seg_method, lost_method, patch_score_method, tokencut_method
from discovery_parts import PATCH, SeesBrightness, bright_squares
from torchvision.models import VisionTransformer

from last_vit.models import find_patch_size, takes_any_size
from last_vit.pooling import LaStPool

CPU = torch.device("cpu")
SCORE = patch_score_method("peak", "trained", LaStPool(1))
timm = pytest.importorskip("timm")


@pytest.fixture
def images(tmp_path):
    return DiscoveryImages(bright_squares(tmp_path), (0.5,) * 3, (0.5,) * 3)


def run(images, methods, batch_size=1, num_workers=0, **kwargs):
    loader = build_native_loader(images, PATCH, batch_size, num_workers)
    return discover_boxes(SeesBrightness().eval(), loader, methods, PATCH, CPU, **kwargs)


def test_a_model_that_sees_the_object_is_always_right(images):
    _, (found,), whole_image = run(images, [SCORE], classes=("even", "odd"))
    assert whole_image.compute()["corloc"] == 0.0
    assert found.corloc.compute() == {"corloc": 100.0, "mean_iou": 100.0, "num_images": 4}
    assert found.corloc.compute_by_class() == {"even": (100.0, 2), "odd": (100.0, 2)}
    for image in images.objects.images:
        assert list(found.boxes[image.path.name]) == image.boxes_xyxy[0].tolist()
    assert found.best_iou == {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0}


@pytest.mark.parametrize(("batch_size", "num_workers"), [(2, 0), (3, 1)])
def test_boxes_do_not_depend_on_batches_and_workers(images, batch_size, num_workers):
    methods = [SCORE, lost_method(4), dino_seg_method(1), tokencut_method()]
    torch.manual_seed(0)
    one = run(images, methods).runs
    torch.manual_seed(0)
    other = run(images, methods, batch_size, num_workers).runs
    assert [each.boxes for each in one] == [each.boxes for each in other]
    assert [each.best_iou for each in one] == [each.best_iou for each in other]
    assert len({str(each.boxes) for each in one}) > 1


def test_bfloat16_sees_the_same_squares(images):
    (found,) = run(images, [SCORE], dtype=torch.bfloat16).runs
    assert found.corloc.compute()["corloc"] == 100.0


def test_the_attention_layer_is_read_only_where_needed():
    assert feature_reader([SCORE]).__name__ == "dense_forward"
    assert feature_reader([SCORE, lost_method()]).__name__ == "last_attention"


def test_errors_name_the_image(images):
    with pytest.raises(ValueError, match=r"image 0\.png: .*head 7"):
        run(images, [dino_seg_method(7)])


def test_the_first_lap_warms_up():
    watch = Stopwatch(CPU)
    with watch.lap(5):
        time.sleep(0.05)
    assert watch.seconds_per_image() >= 0.01
    for _ in range(2):
        with watch.lap(2):
            time.sleep(0.002)
    assert 0.001 <= watch.seconds_per_image() < 0.01
    assert Stopwatch(CPU).seconds_per_image() == float("inf")


def test_the_patch_size_of_any_host():
    assert find_patch_size(SeesBrightness().eval(), 32) == 8
    assert find_patch_size(timm.create_model("test_resnet").eval(), 96) == 32
    assert find_patch_size(timm.create_model("test_vit").eval().bfloat16(), 160) == 16
    with pytest.raises(ValueError, match="grid of 4 x 4 patches"):
        find_patch_size(timm.create_model("test_resnet").eval(), 97)


def test_who_takes_any_size():
    assert takes_any_size(SeesBrightness().eval(), 32, 8)
    assert takes_any_size(timm.create_model("test_resnet").eval(), 96, 32)
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2}
    assert not takes_any_size(timm.models.vision_transformer.VisionTransformer(**small).eval(), 32, 8)
    assert not takes_any_size(VisionTransformer(32, 8, 1, 2, 12, 24).eval(), 32, 8)
