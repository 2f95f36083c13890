"""ForegroundImages: annotations lie where the image shows the object, from every source; faults stop or are counted."""

import json
import shutil
from fractions import Fraction

import numpy as np
import pytest
import torch
from foreground_images import ForegroundImages, patch_foreground
from PIL import Image

from last_vit.data.coco import CocoInstances
from last_vit.data.synthetic import SyntheticObjects, write_coco, write_imagenet, write_voc
from last_vit.data.transforms import EvalTransform

# pycocotools on numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

COUNT, SIDE = 5, 32
AS_IT_IS = EvalTransform(SIDE, SIDE)
PLAIN = {"mean": (0, 0, 0), "std": (1, 1, 1)}
SAMPLES = SyntheticObjects(COUNT, "val", image_size=SIDE, num_classes=3)
VOC = "VOCdevkit/VOC2012"
COCO_JSON = "coco/annotations/instances_val2017.json"
# images, and what says what is object
BOXES = {
    "coco": ("coco/val2017", COCO_JSON),
    "voc": (f"{VOC}/JPEGImages", f"{VOC}/Annotations"),
    "imagenet": ("imagenet/val", "imagenet/Annotations/CLS-LOC/val"),
}
MASKS = {
    "coco": ("coco/val2017", COCO_JSON),
    "voc": (f"{VOC}/JPEGImages", f"{VOC}/SegmentationObject"),
    "npy": (f"{VOC}/JPEGImages", "npy"),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("foreground")
    write_coco(SAMPLES, root / "coco")
    write_voc(SAMPLES, root / "VOCdevkit")
    write_imagenet(SAMPLES, root / "imagenet")
    (root / "npy").mkdir()
    for index in range(COUNT):
        np.save(root / "npy" / f"2009_{index:06d}.npy", SAMPLES.render(index).mask.numpy())
    return root


@pytest.fixture
def root(written, tmp_path):
    return shutil.copytree(written, tmp_path / "data")


def _open(root, kind, source, transform=AS_IT_IS, **options):
    images, annotations = (BOXES if kind == "boxes" else MASKS)[source]
    return ForegroundImages(root / images, transform, **{kind: root / annotations}, **options)


def _rendered(path):
    """The synthetic sample of a written image: COCO and ImageNet number from 1, VOC from 0."""
    number = int(path.stem[-6:])
    return SAMPLES.render(number if path.stem.startswith("2009_") else number - 1)


def _box_mask(box, side=SIDE):
    x1, y1, x2, y2 = box.int().tolist()
    mask = torch.zeros(side, side, dtype=torch.uint8)
    mask[y1:y2, x1:x2] = 1
    return mask


@pytest.mark.parametrize("source", BOXES)
def test_boxes_are_the_synthetic_truth(written, source):
    dataset = _open(written, "boxes", source)
    assert len(dataset) == len(dataset.image_paths) == COUNT
    assert dataset.has_foreground
    assert dataset.skipped == {}
    for index, path in enumerate(dataset.image_paths):
        sample, rendered = dataset[index], _rendered(path)
        assert torch.equal(sample["box_xyxy"], rendered.box_xyxy)
        assert torch.equal(sample["foreground"], _box_mask(rendered.box_xyxy))


@pytest.mark.parametrize("source", MASKS)
def test_masks_are_the_synthetic_truth(written, source):
    dataset = _open(written, "masks", source)
    assert len(dataset) == COUNT
    for index, path in enumerate(dataset.image_paths):
        sample, rendered = dataset[index], _rendered(path)
        assert torch.equal(sample["foreground"], rendered.mask.to(torch.uint8))
        if source == "coco":
            assert torch.equal(sample["box_xyxy"], rendered.box_xyxy)
        else:
            assert sample["box_xyxy"].isnan().all()


def test_without_annotations_all_is_unknown(written):
    dataset = ForegroundImages(written / "coco", AS_IT_IS)
    assert len(dataset) == COUNT
    assert not dataset.has_foreground
    assert (dataset[0]["foreground"] == 255).all()
    assert dataset[0]["box_xyxy"].isnan().all()


def _write_scene(folder, height, width, mask):
    """A black image that is white where the mask is, losslessly, with its mask as PNG."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask * np.uint8(255)).convert("RGB").save(folder / "images" / "1.png")
    Image.fromarray(mask.astype(np.uint8)).save(folder / "masks" / "1.png")


def _write_coco(path, height, width, objects, file_name="1.png"):
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "iscrowd": int(crowd), "segmentation": segmentation}
        for i, (box, crowd, segmentation) in enumerate(objects)
    ]
    images = [{"id": 1, "file_name": file_name, "height": height, "width": width}]
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]})
    )


def _rectangle(x, y, width, height):
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


@pytest.mark.parametrize("image_hw", [(64, 64), (96, 64), (61, 150), (150, 61), (33, 97)])
@pytest.mark.parametrize(("resize", "crop"), [(32, 28), (37, 32), (80, 80), (30, 42)])
def test_boxes_and_masks_lie_where_the_image_shows_the_object(tmp_path, image_hw, resize, crop):
    height, width = image_hw
    x1, y1, x2, y2 = int(0.3 * width), int(0.2 * height), int(0.7 * width), int(0.9 * height)
    mask = np.zeros(image_hw, dtype=bool)
    mask[y1:y2, x1:x2] = True
    _write_scene(tmp_path, height, width, mask)
    box = [x1, y1, x2 - x1, y2 - y1]
    _write_coco(tmp_path / "instances.json", height, width, [(box, False, _rectangle(*box))])
    transform = EvalTransform(resize, crop, **PLAIN)
    for options in (
        {"boxes": tmp_path / "instances.json"},
        {"masks": tmp_path / "instances.json"},
        {"masks": tmp_path / "masks"},
    ):
        sample = ForegroundImages(tmp_path / "images", transform, **options)[0]
        shown, foreground = sample["image"][0], sample["foreground"]
        assert sample["image_hw"].tolist() == [height, width]
        # a resized edge is grey for the width of a pixel or of the enlargement; beyond it there is no doubt
        known = foreground != 255
        blur = max(1, round(resize / min(image_hw)))
        inside, outside = shown > 0.99, (shown < 0.01) & known
        assert inside.sum() > 0.2 * mask.mean() * known.sum()
        assert (foreground[inside] == 1).all()
        assert (foreground[outside] == 0).all()
        for axis in (0, 1):
            line = ((foreground == 1).any(dim=axis), inside.any(dim=axis))
            assert 0 <= line[0].sum() - line[1].sum() <= 2 * blur + 2
        # padding, and nothing else, is unknown
        assert int((~known).sum()) == crop * crop - min(crop, _resized(height, image_hw, resize)) * min(
            crop, _resized(width, image_hw, resize)
        )


def _resized(side, image_hw, resize):
    return resize if side == min(image_hw) else int(resize * side / min(image_hw))


def test_a_box_covers_the_pixels_whose_centres_it_contains(tmp_path):
    _write_scene(tmp_path, 40, 40, np.zeros((40, 40), dtype=bool))
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        x, y, width, height = (torch.rand(4, generator=generator) * 20).tolist()
        _write_coco(tmp_path / "instances.json", 40, 40, [([x, y, width, height], False, None)])
        dataset = ForegroundImages(tmp_path / "images", EvalTransform(30, 24), boxes=tmp_path / "instances.json")
        expected = [
            [
                int(x <= (column + 0.5 + 3) * 40 / 30 < x + width and y <= (row + 0.5 + 3) * 40 / 30 < y + height)
                for column in range(24)
            ]
            for row in range(24)
        ]
        assert dataset[0]["foreground"].tolist() == expected


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_crowd_is_unknown_except_under_objects(tmp_path, kind):
    _write_scene(tmp_path, 20, 20, np.zeros((20, 20), dtype=bool))
    things = [([0, 0, 4, 20], False), ([2, 0, 8, 20], True), ([8, 0, 4, 20], False)]
    objects = [(box, crowd, _rectangle(*box)) for box, crowd in things]
    _write_coco(tmp_path / "i.json", 20, 20, objects)
    sample = ForegroundImages(tmp_path / "images", EvalTransform(20, 20), **{kind: tmp_path / "i.json"})[0]
    assert sample["foreground"].tolist() == [[1] * 4 + [255] * 4 + [1] * 4 + [0] * 8] * 20


def test_mask_values(root):
    path = root / "npy" / "2009_000000.npy"
    for dtype in (np.uint8, np.int64):
        values = np.zeros((SIDE, SIDE), dtype=dtype)
        values[0, :4] = (1, 7, 254, 255)
        np.save(path, values)
        foreground = _open(root, "masks", "npy")[0]["foreground"]
        assert foreground[0, :5].tolist() == [1, 1, 1, 255, 0]
        assert (foreground[1:] == 0).all()
    np.save(path, np.full((SIDE, SIDE), 3000))
    assert (_open(root, "masks", "npy")[0]["foreground"] == 1).all()
    np.save(path, -values)
    with pytest.raises(ValueError, match=r"000000\.npy holds -255"):
        _open(root, "masks", "npy")[0]


def test_black_and_white_masks_are_refused(root):
    """All that was meant as object would be unknown, and no number would tell."""
    values = np.zeros((SIDE, SIDE), dtype=np.uint8)
    np.save(root / "npy" / "2009_000000.npy", values)
    assert (_open(root, "masks", "npy")[0]["foreground"] == 0).all()
    values[5:9] = 255
    np.save(root / "npy" / "2009_000000.npy", values)
    with pytest.raises(ValueError, match=r"000000\.npy holds no object, but 255.*write 1"):
        _open(root, "masks", "npy")[0]
    np.save(root / "npy" / "2009_000000.npy", values == 255)
    assert int((_open(root, "masks", "npy")[0]["foreground"] == 1).sum()) == 4 * SIDE


def test_voc_corners_count_from_one_only_in_a_devkit(root):
    (root / VOC / "Annotations").rename(root / "boxes")
    images = root / VOC / "JPEGImages"
    moved = ForegroundImages(images, AS_IT_IS, boxes=root / "boxes")[0]["box_xyxy"]
    x1, y1, x2, y2 = SAMPLES.render(0).box_xyxy.tolist()
    assert moved.tolist() == [x1 + 1, y1 + 1, x2, y2]


def test_annotation_of_a_scaled_image_is_brought_to_its_pixels(root):
    path = sorted((root / BOXES["imagenet"][1]).glob("*.xml"))[0]
    text = path.read_text()
    path.write_text(text.replace(f">{SIDE}<", f">{2 * SIDE}<"))
    sample = _open(root, "boxes", "imagenet")[0]
    assert sample["image_hw"].tolist() == [SIDE, SIDE]
    assert torch.equal(sample["box_xyxy"], SAMPLES.render(0).box_xyxy / 2)


def test_coco_names_are_found_below_the_parent_folder(root):
    train = root / "coco" / "train2017"
    shutil.copytree(root / "coco" / "val2017", train)
    with pytest.raises(ValueError, match=r"fits images train2017/000000000001\.jpg and val2017/000000000001\.jpg"):
        ForegroundImages(root / "coco", AS_IT_IS, boxes=root / COCO_JSON)
    path = root / COCO_JSON
    path.write_text(path.read_text().replace('"file_name": "', '"file_name": "val2017/'))
    assert CocoInstances(path).file_names[0] == "val2017/000000000001.jpg"
    assert len(ForegroundImages(root / "coco" / "val2017", AS_IT_IS, boxes=path)) == COUNT
    with pytest.raises(FileNotFoundError, match=r"5 of 10 images have no annotation \(\S*train2017/000000000001\.jpg"):
        ForegroundImages(root / "coco", AS_IT_IS, boxes=path)
    part = ForegroundImages(root / "coco", AS_IT_IS, boxes=path, skip_broken=True)
    assert part.skipped == {"no annotation": COUNT}
    assert {image.parent.name for image in part.image_paths} == {"val2017"}


@pytest.mark.parametrize(("kind", "source"), [("boxes", s) for s in BOXES] + [("masks", s) for s in MASKS])
def test_what_has_no_partner_stops_or_is_counted(root, kind, source):
    whole = _open(root, kind, source)
    kept = whole.image_paths[1:]
    whole.image_paths[0].unlink()
    extra = kept[-1].parent / "unknown.jpg"
    shutil.copy(kept[-1], extra)
    with pytest.raises(
        FileNotFoundError,
        match=r"1 of 5 images have no annotation \(\S+unknown\.jpg\); 1 of 5 annotations have no image "
        rf"\(\S*{whole.image_paths[0].stem}\S*\).*part of the other.*skip_broken=True",
    ):
        _open(root, kind, source)
    part = _open(root, kind, source, skip_broken=True)
    assert part.image_paths == kept
    assert part.skipped == {"no annotation": 1, "annotation without image": 1}
    for index in range(len(part)):
        assert torch.equal(part[index]["foreground"], whole[index + 1]["foreground"])


def test_broken_images_stop_or_are_counted(root):
    whole = _open(root, "boxes", "voc")
    with open(whole.image_paths[2], "r+b") as file:
        file.truncate(300)
    with pytest.raises(ValueError, match=r"2009_000002\.jpg cannot be read.*skip_broken"):
        whole[2]
    for options in ({}, {"boxes": root / VOC / "Annotations"}):
        part = ForegroundImages(root / VOC / "JPEGImages", AS_IT_IS, **options, skip_broken=True)
        assert part.skipped == {"broken image": 1}
        assert part.image_paths == whole.image_paths[:2] + whole.image_paths[3:]
    assert torch.equal(part[2]["box_xyxy"], whole[3]["box_xyxy"])


def test_broken_annotations_stop_or_are_counted(root):
    (root / VOC / "Annotations" / "2009_000001.xml").write_text("not xml")
    (root / VOC / "SegmentationObject" / "2009_000001.png").write_text("not a picture")
    (root / "npy" / "2009_000001.npy").write_text("not an array")
    content = json.loads((root / COCO_JSON).read_text())
    content["annotations"][1]["segmentation"] = [[1, 2]]
    (root / COCO_JSON).write_text(json.dumps(content))
    for kind, source in (("boxes", "voc"), ("masks", "voc"), ("masks", "npy"), ("masks", "coco")):
        with pytest.raises(ValueError, match=r"000002\.jpg|2009_000001"):
            _open(root, kind, source)[1]
        part = _open(root, kind, source, skip_broken=True)
        assert part.skipped == {"broken annotation": 1}
        assert len(part) == COUNT - 1
    assert len(_open(root, "boxes", "coco", skip_broken=True)) == COUNT


def test_another_size_stops_or_is_counted(root):
    np.save(root / "npy" / "2009_000000.npy", np.ones((SIDE, SIDE + 1), dtype=bool))
    with pytest.raises(ValueError, match=r"2009_000000\.jpg is 32 x 32 \(width x height\), its mask 33 x 32.*same res"):
        _open(root, "masks", "npy")[0]
    path = root / VOC / "Annotations" / "2009_000000.xml"
    path.write_text(path.read_text().replace("<width>32", "<width>64"))
    with pytest.raises(ValueError, match=r"32 x 32 \(width x height\), its annotation says 64 x 32"):
        _open(root, "boxes", "voc")[0]
    for kind, source in (("masks", "npy"), ("boxes", "voc")):
        part = _open(root, kind, source, skip_broken=True)
        assert part.skipped == {"image and annotation of different shape": 1}


def test_wrong_arguments(root, tmp_path):
    images = root / "coco" / "val2017"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="boxes and masks both"):
        ForegroundImages(images, AS_IT_IS, boxes=root / COCO_JSON, masks=root / COCO_JSON)
    for wrong in (tmp_path / "absent", root / COCO_JSON):
        with pytest.raises(FileNotFoundError, match=rf"image folder {wrong} does not exist or is not a folder"):
            ForegroundImages(wrong, AS_IT_IS)
    with pytest.raises(FileNotFoundError, match=r"no image in \S+empty, searched in depth for \.jpeg"):
        ForegroundImages(tmp_path / "empty", AS_IT_IS)
    for kind, what in (("boxes", r"no \.xml file in \S+empty.*an XML file per image"), ("masks", r"\.png or \.npy")):
        with pytest.raises(FileNotFoundError, match=what):
            ForegroundImages(images, AS_IT_IS, **{kind: tmp_path / "empty"})
        with pytest.raises(FileNotFoundError, match=r"absent"):
            ForegroundImages(images, AS_IT_IS, **{kind: tmp_path / "absent"})
        with pytest.raises(ValueError, match=r"expected COCO's instances_\*\.json"):
            ForegroundImages(images, AS_IT_IS, **{kind: root / "imagenet/LOC_synset_mapping.txt"})
    for path in images.iterdir():
        path.write_text("not an image")
    with pytest.raises(ValueError, match=r"no image of \S+ is left: skipped {'broken image': 5}"):
        ForegroundImages(images, AS_IT_IS, skip_broken=True)


@pytest.mark.parametrize("source", ["coco", "voc", "imagenet"])
def test_single_objects_are_those_with_a_box(root, source):
    images = _open(root, "boxes", source)
    shares = []
    for sample in (images[index] for index in range(len(images))):
        x1, y1, x2, y2 = sample["box_xyxy"].tolist()
        shares.append((x2 - x1) * (y2 - y1) / (SIDE * SIDE))
    assert images.single_objects() == (list(range(COUNT)), {})
    limit = sorted(shares)[2]
    kept, left_out = images.single_objects(limit)
    assert kept == [index for index, share in enumerate(shares) if share < limit]
    assert left_out == {"large box": COUNT - len(kept)}


def test_several_objects_crowds_and_none_are_left_out(root):
    path = root / COCO_JSON
    content = json.loads(path.read_text())
    objects = content["annotations"]
    crowd = {**objects[1], "id": 901, "iscrowd": 1}
    content["annotations"] = [*objects[:3], *objects[4:], {**objects[0], "id": 900}, crowd]
    path.write_text(json.dumps(content))
    for kind in ("boxes", "masks"):
        images = _open(root, kind, "coco")
        kept, left_out = images.single_objects()
        assert kept == [2, 4]
        assert left_out == {"several objects": 2, "no object": 1}
        has_box = [not images[index]["box_xyxy"].isnan().any() for index in range(COUNT)]
        assert [index for index in range(COUNT) if has_box[index]] == kept


def test_single_objects_must_be_known(root):
    with pytest.raises(ValueError, match="do not tell objects apart"):
        _open(root, "masks", "voc").single_objects()
    with pytest.raises(ValueError, match="give their boxes"):
        ForegroundImages(root / "coco/val2017", AS_IT_IS).single_objects()


# Patches -------------------------------------------------------------------------------------------------------------


def _by_loop(foreground, grid_hw):
    """One image, one patch, one pixel at a time, in exact fractions."""
    side = len(foreground)
    is_foreground, is_known = [], []
    for row in range(grid_hw[0]):
        for column in range(grid_hw[1]):
            total = known = inside = Fraction(0)
            for y in range(side):
                for x in range(side):
                    area = _overlap(y, row, side, grid_hw[0]) * _overlap(x, column, side, grid_hw[1])
                    total += area
                    known += area * (foreground[y][x] != 255)
                    inside += area * (foreground[y][x] == 1)
            is_known.append(known >= total / 2)
            is_foreground.append(known >= total / 2 and inside > known / 2)
    return is_foreground, is_known


def _overlap(pixel, patch, side, num_patches):
    size = Fraction(side, num_patches)
    return max(Fraction(0), min(Fraction(pixel + 1), (patch + 1) * size) - max(Fraction(pixel), patch * size))


@pytest.mark.parametrize(("side", "grid_hw"), [(8, (4, 4)), (9, (4, 4)), (8, (3, 5)), (10, (7, 7)), (5, (8, 2))])
def test_equals_the_loop(side, grid_hw):
    generator = torch.Generator().manual_seed(side)
    values = torch.tensor([0, 1, 1, 255], dtype=torch.uint8)
    foreground = values[torch.randint(4, (6, side, side), generator=generator)]
    is_foreground, is_known = patch_foreground(foreground, grid_hw)
    assert is_foreground.shape == is_known.shape == (6, grid_hw[0] * grid_hw[1])
    expected = [_by_loop(image.tolist(), grid_hw) for image in foreground]
    assert is_foreground.tolist() == [image[0] for image in expected]
    assert is_known.tolist() == [image[1] for image in expected]
    assert 0 < is_foreground.sum() < is_known.sum() < is_known.numel()


def test_half_is_not_more_than_half_on_a_grid_that_does_not_divide():
    """7 patches on 64 pixels: the columns left of 32 end exactly in the middle of patch 3."""
    foreground = torch.zeros(1, 64, 64, dtype=torch.uint8)
    foreground[:, :, :32] = 1
    columns = patch_foreground(foreground, (7, 7))[0].view(7, 7)
    assert columns.tolist() == [[True] * 3 + [False] * 4] * 7
    foreground[:, :, 32] = 1
    assert patch_foreground(foreground, (7, 7))[0].view(7, 7)[0].tolist() == [True] * 4 + [False] * 3


@pytest.mark.parametrize(
    ("foreground", "grid_hw", "match"),
    [
        (torch.zeros(2, 8, 8), (2, 2), r"uint8 \[B, S, S\], got torch.float32"),
        (torch.zeros(8, 8, dtype=torch.uint8), (2, 2), r"\(8, 8\)"),
        (torch.zeros(2, 8, 6, dtype=torch.uint8), (2, 2), r"\(2, 8, 6\)"),
        (torch.zeros(2, 8, 8, dtype=torch.uint8), (0, 2), r"positive counts, got \(0, 2\)"),
    ],
)
def test_wrong_arguments_for_patches(foreground, grid_hw, match):
    with pytest.raises(ValueError, match=match):
        patch_foreground(foreground, grid_hw)
