"""Methods, CorLoc and the pass over images: a model that sees the object is right, whatever the batches."""

from collections import Counter

import numpy as np
import object_discovery as known
import pytest
import torch
from discover_boxes import Stopwatch, corloc, corloc_by_class, discover_boxes, score_box
from discovery_images import DiscoveryImages, ImageObjects, ObjectList, build_native_loader
from last_attention import LastAttention, last_attention
from PIL import Image
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from last_vit.dense import find_patch_size, takes_any_size
from last_vit.dino_vit import DinoVisionTransformer
from last_vit.patch_scores import patch_score
from last_vit.pooling import LaStPool, last_pool

timm = pytest.importorskip("timm")
PATCH = 8
# (height, width, object in patches as x1, y1, x2, y2)
SQUARES = [(48, 64, (1, 1, 4, 4)), (44, 60, (5, 3, 7, 5)), (64, 48, (0, 0, 3, 4)), (48, 64, (3, 2, 5, 4))]
CPU = torch.device("cpu")
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


def score_method(component, kind):
    """A method of the patch score, and its mask of an image by the public functions."""

    def mask(found, i):
        patches = found.output.patch_tokens
        tokens = {"cls": found.output.cls_token, "mean": patches.mean(1), "last": last_pool(patches, 3)}
        token = tokens.get(kind, found.output.global_token)
        return known.patch_score_mask(patch_score(patches, token)[i], GRID, component)

    return known.patch_score_method(component, kind, LaStPool(3)), mask, True


@pytest.mark.parametrize(
    ("method", "mask", "clip"),
    [
        (known.lost_method(5), lambda found, i: known.lost_mask(found.keys[i], GRID, 5), True),
        (known.tokencut_method(), lambda found, i: known.tokencut_mask(found.keys[i], GRID), True),
        *(
            (
                known.dino_seg_method(1, flag),
                lambda found, i, flag=flag: known.dino_seg_mask(found.cls_attention[i, 1], GRID, flag),
                not flag,
            )
            for flag in (True, False)
        ),
        *(score_method(component, "trained") for component in ("peak", "largest", "all")),
        *(score_method("all", kind) for kind in ("cls", "mean", "last")),
    ],
)
def test_every_method_reads_its_own(features, method, mask, clip):
    for i, (box, patches) in enumerate(method.boxes(features, IMAGE_HW, 8)):
        assert (patches.mask == mask(features, i).mask).all()
        assert box == known.patch_box(patches.mask, 8, IMAGE_HW[i], clip)
    if not method.needs_attention:
        alone = LastAttention(features.output)
        both = [[box for box, _ in method.boxes(each, IMAGE_HW, 8)] for each in (alone, features)]
        assert both[0] == both[1]


def test_dino_seg_needs_a_class_token(features):
    with pytest.raises(ValueError, match="no class token"):
        known.dino_seg_method(0).boxes(features._replace(cls_attention=None), IMAGE_HW, 8)


def test_corloc_a_box_is_right_from_half_an_overlap_on():
    boxes = [(0, 0, 10, 5), (0, 0, 10, 4.9), (20, 20, 40, 40), (50, 50, 60, 60)]  # exactly half is right
    found = [score_box(box, OBJECTS, torch.tensor([0, 1])) for box in boxes]
    found.append(score_box((0, 0, 1, 1), OBJECTS[:0], torch.tensor([])))  # no object: counted, never hit
    assert [each.best_iou for each in found] == pytest.approx([0.5, 0.49, 1.0, 0.0, 0.0])
    assert corloc(found) == pytest.approx({"corloc": 100 * 2 / 5, "mean_iou": 100 * (0.5 + 0.49 + 1) / 5})
    # by class: the first finds the cat, not the dog, then one of two dogs
    shown = [score_box((0, 0, 10, 10), OBJECTS, torch.tensor(labels)) for labels in ([0, 1], [1, 1])]
    assert corloc_by_class([*shown, found[-1]], ["cat", "dog", "sheep"]) == {"cat": (100.0, 1), "dog": (50.0, 2)}


class SeesBrightness(DinoVisionTransformer):
    """Patch tokens are mean colours, the class token is white: bright patches score 1, dark ones -1."""

    def __init__(self):
        super().__init__(img_size=32, patch_size=PATCH, embed_dim=12, depth=1, num_heads=2)

    def forward_features(self, x, attn_mask=None, is_causal=False):
        super().forward_features(x)  # the attention layer runs, too
        colours = F.avg_pool2d(x, PATCH).flatten(2).transpose(1, 2)
        tokens = torch.cat([torch.ones(len(x), 1, 3), colours], dim=1)
        return F.pad(tokens, (0, 9))


@pytest.fixture
def images(tmp_path):
    """Dark images with one bright rectangle of whole patches, which is the object; labels in turn."""
    images = []
    for i, (height, width, corners) in enumerate(SQUARES):
        x1, y1, x2, y2 = (PATCH * corner for corner in corners)
        pixels = np.full((height, width, 3), 20, dtype=np.uint8)
        pixels[y1:y2, x1:x2] = 240
        path = tmp_path / f"{i}.png"
        Image.fromarray(pixels).save(path)
        boxes = torch.tensor([[x1, y1, min(x2, width), min(y2, height)]], dtype=torch.float32)
        images.append(ImageObjects(path, (height, width), boxes, torch.tensor([i % 2])))
    return DiscoveryImages(ObjectList(images, ("even", "odd"), Counter()), (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_sees_the_object_is_always_right(images, dtype):
    loader, methods = build_native_loader(images, PATCH, 1, 0), [score_method("peak", "trained")[0]]
    (run,) = discover_boxes(SeesBrightness().eval(), loader, methods, PATCH, CPU, dtype)
    metrics = {name: value for name, value in run.metrics.items() if not name.startswith("fps")}
    assert metrics == {"corloc": 100.0, "mean_iou": 100.0, "corloc_whole_image": 0.0}
    assert corloc_by_class(run.found.values(), images.objects.classes) == {"even": (100.0, 2), "odd": (100.0, 2)}
    for index, image in enumerate(images.objects.images):
        assert list(run.found[index].box_xyxy) == image.boxes_xyxy[0].tolist()


def test_the_first_lap_warms_up():
    watch = Stopwatch(CPU)
    with watch.lap(5):
        pass
    assert [number for _, number in watch.laps] == [5]
    for laps, expected in (([], float("inf")), ([(10, 5)], 2.0), ([(10, 5), (1, 2), (3, 2)], 1.0)):
        watch.laps = laps
        assert watch.seconds_per_image() == expected


def test_patch_size_and_who_takes_any_size():
    resnet = timm.create_model("test_resnet").eval()
    assert find_patch_size(timm.create_model("test_vit").eval().bfloat16(), 160) == 16
    with pytest.raises(ValueError, match="grid of 4 x 4 patches"):
        find_patch_size(resnet, 97)
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2}
    for model, side, patch_size, takes_any in (
        (SeesBrightness(), 32, 8, True),
        (resnet, 96, 32, True),
        (timm.models.vision_transformer.VisionTransformer(**small), 32, 8, False),
        (VisionTransformer(32, 8, 1, 2, 12, 24), 32, 8, False),
    ):
        assert find_patch_size(model.eval(), side) == patch_size
        assert takes_any_size(model, side, patch_size) == takes_any
