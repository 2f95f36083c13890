"""Methods, CorLoc and the pass over images: a model that sees the object is right, whatever the batches."""

import time

import pytest
import torch
from discover_boxes import CorLoc, Stopwatch, discover_boxes
from discovery_images import DiscoveryImages, build_native_loader
from discovery_methods import dino_seg_method, feature_reader, lost_method, patch_score_method, tokencut_method
from discovery_parts import PATCH, SeesBrightness, bright_squares
from last_attention import last_attention
from object_discovery import dino_seg_mask, lost_mask, patch_box, patch_score_mask, tokencut_mask
from torchvision.models import VisionTransformer

from last_vit.dino_vit import DinoVisionTransformer
from last_vit.models import find_patch_size, takes_any_size
from last_vit.patch_scores import patch_score
from last_vit.pooling import LaStPool, last_pool

timm = pytest.importorskip("timm")
CPU = torch.device("cpu")
SCORE = patch_score_method("peak", "trained", LaStPool(1))
GRID, IMAGE_HW = (3, 4), [(24, 32), (20, 27)]
OBJECTS = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 40.0, 40.0]])


@pytest.fixture(scope="module")
def features():
    torch.manual_seed(0)
    model = DinoVisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
        return last_attention(model, torch.randn(2, 3, 24, 32))


def score(found, i, token=None):
    return patch_score(found.output.patch_tokens, found.output.global_token if token is None else token)[i]


@pytest.mark.parametrize(
    ("method", "mask", "clip"),
    [
        (lost_method(5), lambda found, i: lost_mask(found.keys[i], GRID, 5), True),
        (tokencut_method(), lambda found, i: tokencut_mask(found.keys[i], GRID), True),
        (dino_seg_method(1), lambda found, i: dino_seg_mask(found.cls_attention[i, 1], GRID), False),
        (dino_seg_method(1, False), lambda found, i: dino_seg_mask(found.cls_attention[i, 1], GRID, False), True),
        *(
            (
                patch_score_method(component, "trained", LaStPool(1)),
                lambda found, i, component=component: patch_score_mask(score(found, i), GRID, component),
                True,
            )
            for component in ("peak", "largest", "all")
        ),
    ],
)
def test_every_method_reads_its_own(features, method, mask, clip):
    for i, (box, patches) in enumerate(method.boxes(features, IMAGE_HW, 8)):
        assert (patches.mask == mask(features, i).mask).all()
        assert box == patch_box(patches.mask, 8, IMAGE_HW[i], clip)
    assert feature_reader([method]).__name__ == ("last_attention" if method.needs_attention else "dense_forward")
    if not method.needs_attention:
        both = [[box for box, _ in method.boxes(each, IMAGE_HW, 8)] for each in (features.output, features)]
        assert both[0] == both[1]


@pytest.mark.parametrize("kind", ["cls", "mean", "last"])
def test_global_tokens(features, kind):
    output = features.output
    tokens = {"cls": output.cls_token, "mean": output.patch_tokens.mean(1), "last": last_pool(output.patch_tokens, 3)}
    method = patch_score_method("all", kind, LaStPool(3))
    for i, (_, patches) in enumerate(method.boxes(output, IMAGE_HW, 8)):
        assert (patches.mask == patch_score_mask(score(features, i, tokens[kind]), GRID, "all").mask).all()
    assert ("K=3" in method.protocol) == (kind == "last")


def test_what_cannot_be_read_is_said(features):
    with pytest.raises(ValueError, match=r"head 3, counted from 0, but .* layer has 3; .*--dino-seg-head"):
        dino_seg_method(3).boxes(features, IMAGE_HW, 8)
    with pytest.raises(ValueError, match="no class token"):
        dino_seg_method(0).boxes(features._replace(cls_attention=None), IMAGE_HW, 8)


def test_corloc_a_box_is_right_from_half_an_overlap_on():
    metric = CorLoc()
    assert metric.update((0, 0, 10, 5), OBJECTS) == pytest.approx(0.5)  # exactly half: right
    assert metric.update((0, 0, 10, 4.9), OBJECTS) == pytest.approx(0.49)
    assert metric.update((20, 20, 40, 40), OBJECTS) == 1.0  # any object will do
    assert metric.update((50, 50, 60, 60), OBJECTS) == 0.0
    assert metric.update((0, 0, 1, 1), OBJECTS[:0]) == 0.0  # no object: counted, never hit
    expected = {"corloc": 100 * 2 / 5, "mean_iou": 100 * (0.5 + 0.49 + 1) / 5, "num_images": 5}
    assert metric.compute() == pytest.approx(expected)
    for box in ((0, 0, 0, 5), (0, 0, float("nan"), 5), (0, 0, 5)):
        with pytest.raises(ValueError, match="the predicted box must be"):
            CorLoc().update(box, OBJECTS)
    with pytest.raises(ValueError, match="zero images"):
        CorLoc().compute()


def test_corloc_by_class_counts_images_that_show_it():
    metric = CorLoc(["cat", "dog", "sheep"])
    metric.update((0, 0, 10, 10), OBJECTS, torch.tensor([0, 1]))  # finds the cat, not the dog
    metric.update((0, 0, 10, 10), OBJECTS, torch.tensor([1, 1]))  # finds one of two dogs
    metric.update((90, 90, 99, 99), OBJECTS[:0], torch.tensor([], dtype=torch.long))
    assert metric.compute_by_class() == {"cat": (100.0, 1), "dog": (50.0, 2)}
    assert metric.compute()["corloc"] == pytest.approx(200 / 3)


@pytest.fixture
def images(tmp_path):
    return DiscoveryImages(bright_squares(tmp_path), (0.5,) * 3, (0.5,) * 3)


def run(images, methods, batch_size=1, num_workers=0, **kwargs):
    loader = build_native_loader(images, PATCH, batch_size, num_workers)
    return discover_boxes(SeesBrightness().eval(), loader, methods, PATCH, CPU, **kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_sees_the_object_is_always_right(images, dtype):
    (found,) = run(images, [SCORE], classes=("even", "odd"), dtype=dtype)
    metrics = {name: value for name, value in found.metrics.items() if not name.startswith("fps")}
    assert metrics == {"corloc": 100.0, "mean_iou": 100.0, "num_images": 4, "corloc_whole_image": 0.0}
    assert found.by_class == {"even": (100.0, 2), "odd": (100.0, 2)}
    for image in images.objects.images:
        assert list(found.boxes[image.path.name]) == image.boxes_xyxy[0].tolist()
    assert found.best_iou == {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0}


def test_boxes_do_not_depend_on_batches_and_workers(images):
    methods, found = [SCORE, lost_method(4), dino_seg_method(1), tokencut_method()], []
    for batch_size, num_workers in ((1, 0), (2, 0), (3, 1)):
        torch.manual_seed(0)
        found.append([(each.boxes, each.best_iou) for each in run(images, methods, batch_size, num_workers)])
    assert found[0] == found[1] == found[2]
    assert len({str(each) for each in found[0]}) > 1


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


def test_patch_size_and_who_takes_any_size():
    resnet, dino = timm.create_model("test_resnet").eval(), SeesBrightness().eval()
    assert find_patch_size(dino, 32) == 8
    assert find_patch_size(resnet, 96) == 32
    assert find_patch_size(timm.create_model("test_vit").eval().bfloat16(), 160) == 16
    with pytest.raises(ValueError, match="grid of 4 x 4 patches"):
        find_patch_size(resnet, 97)
    assert takes_any_size(dino, 32, 8)
    assert takes_any_size(resnet, 96, 32)
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2}
    assert not takes_any_size(timm.models.vision_transformer.VisionTransformer(**small).eval(), 32, 8)
    assert not takes_any_size(VisionTransformer(32, 8, 1, 2, 12, 24).eval(), 32, 8)
