"""ForegroundImages: annotations lie where the image shows the object, from every source; faults stop or are counted."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from foreground_images import ForegroundImages, patch_foreground
from PIL import Image

from last_vit.data.synthetic import SyntheticObjects, write_coco, write_imagenet, write_voc
from last_vit.data.transforms import EvalTransform

# pycocotools on numpy 2

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
SOURCES = [("boxes", source) for source in BOXES] + [("masks", source) for source in MASKS]


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


def _box_mask(box):
    x1, y1, x2, y2 = box.int().tolist()
    mask = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
    mask[y1:y2, x1:x2] = 1
    return mask


@pytest.mark.parametrize(("kind", "source"), SOURCES)
def test_annotations_are_the_synthetic_truth(written, kind, source):
    dataset = _open(written, kind, source)
    assert (len(dataset), len(dataset.image_paths), dataset.skipped) == (COUNT, COUNT, {})
    assert dataset.has_foreground
    for index, path in enumerate(dataset.image_paths):
        sample, rendered = dataset[index], _rendered(path)
        expected = _box_mask(rendered.box_xyxy) if kind == "boxes" else rendered.mask.to(torch.uint8)
        assert torch.equal(sample["foreground"], expected)
        if kind == "boxes" or source == "coco":
            assert torch.equal(sample["box_xyxy"], rendered.box_xyxy)
        else:  # other masks do not tell objects apart
            assert sample["box_xyxy"].isnan().all()


def test_without_annotations_all_is_unknown(written):
    dataset = ForegroundImages(written / "coco", AS_IT_IS)
    assert len(dataset) == COUNT
    assert not dataset.has_foreground
    assert (dataset[0]["foreground"] == 255).all()
    assert dataset[0]["box_xyxy"].isnan().all()
    with pytest.raises(ValueError, match="give their boxes"):
        dataset.keep_single_objects()


def _write_scene(folder, mask, objects):
    """A black image that is white where the mask is, losslessly, its mask as PNG, and objects as (box, is crowd)."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask * np.uint8(255)).convert("RGB").save(folder / "images/1.png")
    Image.fromarray(mask.astype(np.uint8)).save(folder / "masks/1.png")
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "iscrowd": crowd, "segmentation": _rectangle(*box)}
        for i, (box, crowd) in enumerate(objects)
    ]
    images = [{"id": 1, "file_name": "1.png", "height": mask.shape[0], "width": mask.shape[1]}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "instances.json").write_text(json.dumps(content))


def _rectangle(x, y, width, height):
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


@pytest.mark.parametrize("image_hw", [(64, 64), (96, 64), (61, 150), (150, 61), (33, 97)])
@pytest.mark.parametrize(("resize", "crop"), [(32, 28), (37, 32), (80, 80), (30, 42)])
def test_boxes_and_masks_lie_where_the_image_shows_the_object(tmp_path, image_hw, resize, crop):
    height, width = image_hw
    x1, y1, x2, y2 = int(0.3 * width), int(0.2 * height), int(0.7 * width), int(0.9 * height)
    mask = np.zeros(image_hw, dtype=bool)
    mask[y1:y2, x1:x2] = True
    _write_scene(tmp_path, mask, [([x1, y1, x2 - x1, y2 - y1], 0)])
    transform = EvalTransform(resize, crop, **PLAIN)
    for kind, name in (("boxes", "instances.json"), ("masks", "instances.json"), ("masks", "masks")):
        sample = ForegroundImages(tmp_path / "images", transform, **{kind: tmp_path / name})[0]
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
        sides = [resize if side == min(image_hw) else int(resize * side / min(image_hw)) for side in image_hw]
        assert int(known.sum()) == min(crop, sides[0]) * min(crop, sides[1])


def test_a_box_covers_the_pixels_whose_centres_it_contains(tmp_path):
    generator = torch.Generator().manual_seed(0)
    centre = (torch.arange(24) + 0.5 + 3) * 40 / 30  # in original pixels
    for x, y, width, height in (torch.rand(20, 4, generator=generator) * 20).tolist():
        _write_scene(tmp_path, np.zeros((40, 40), dtype=bool), [([x, y, width, height], 0)])
        dataset = ForegroundImages(tmp_path / "images", EvalTransform(30, 24), boxes=tmp_path / "instances.json")
        rows, columns = ((start <= centre) & (centre < start + side) for start, side in ((y, height), (x, width)))
        assert torch.equal(dataset[0]["foreground"].bool(), rows[:, None] & columns)


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_crowd_is_unknown_except_under_objects(tmp_path, kind):
    things = [([0, 0, 4, 20], 0), ([2, 0, 8, 20], 1), ([8, 0, 4, 20], 0)]
    _write_scene(tmp_path, np.zeros((20, 20), dtype=bool), things)
    images = ForegroundImages(tmp_path / "images", EvalTransform(20, 20), **{kind: tmp_path / "instances.json"})
    sample = images[0]
    assert sample["foreground"].tolist() == [[1] * 4 + [255] * 4 + [1] * 4 + [0] * 8] * 20


@pytest.mark.parametrize(
    ("values", "foreground"),
    [
        (np.array([1, 7, 254, 255, 0], np.uint8), [1, 1, 1, 255, 0]),
        (np.array([1, 7, 3000, 255, 0], np.int64), [1, 1, 1, 255, 0]),
        (np.array([True, True, False, False, True]), [1, 1, 0, 0, 1]),
        (np.zeros(5, np.uint8), [0] * 5),
        (np.array([0, -255, 1, 1, 0]), r"000000\.npy holds -255"),
        # black and white: all that was meant as object would be unknown, and no number would tell
        (np.array([0, 255, 255, 0, 0], np.uint8), r"000000\.npy holds no object, but 255.*write 1"),
    ],
)
def test_mask_values(root, values, foreground):
    mask = np.zeros((SIDE, SIDE), values.dtype)
    mask[0, :5] = values
    np.save(root / "npy" / "2009_000000.npy", mask)
    images = _open(root, "masks", "npy")
    if isinstance(foreground, str):
        with pytest.raises(ValueError, match=foreground):
            images[0]
        return
    assert images[0]["foreground"][0, :5].tolist() == foreground
    assert (images[0]["foreground"][1:] == 0).all()


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
    shutil.copytree(root / "coco/val2017", root / "coco/train2017")
    path = root / COCO_JSON
    with pytest.raises(ValueError, match=r"fits images train2017/000000000001\.jpg and val2017/000000000001\.jpg"):
        ForegroundImages(root / "coco", AS_IT_IS, boxes=path)
    path.write_text(path.read_text().replace('"file_name": "', '"file_name": "val2017/'))
    with pytest.raises(FileNotFoundError, match=r"5 of 10 images have no annotation \(such as \S*train2017/.*1\.jpg"):
        ForegroundImages(root / "coco", AS_IT_IS, boxes=path)
    part = ForegroundImages(root / "coco", AS_IT_IS, boxes=path, skip_broken=True)
    assert part.image_paths == ForegroundImages(root / "coco/val2017", AS_IT_IS, boxes=path).image_paths
    assert part.skipped == {"no annotation": COUNT, "file of another kind (.json)": 2}


@pytest.mark.parametrize(("kind", "source"), SOURCES)
def test_what_has_no_partner_stops_or_is_counted(root, kind, source):
    whole = _open(root, kind, source)
    kept = whole.image_paths[1:]
    whole.image_paths[0].unlink()
    extra = kept[-1].parent / "unknown.jpg"
    shutil.copy(kept[-1], extra)
    with pytest.raises(
        FileNotFoundError,
        match=r"1 of 5 images have no annotation \(such as \S+unknown\.jpg\); 1 of 5 annotations have no image "
        rf"\(such as \S*{whole.image_paths[0].stem}\S*\).*part of the other.*skip_broken",
    ):
        _open(root, kind, source)
    part = _open(root, kind, source, skip_broken=True)
    assert part.image_paths == kept
    assert part.skipped == {"no annotation": 1, "annotation without image": 1}
    assert torch.equal(part[1]["foreground"], whole[2]["foreground"])


BROKEN = {
    "broken image": [("boxes", "voc", "JPEGImages/2009_000000.jpg", ".*", r"000000\.jpg cannot be read.*skip_broken")],
    "broken annotation": [
        ("boxes", "voc", "Annotations/2009_000000.xml", ".*", "2009_000000"),
        ("masks", "voc", "SegmentationObject/2009_000000.png", ".*", "2009_000000"),
        ("masks", "npy", "npy/2009_000000.npy", ".*", "2009_000000"),
        ("masks", "coco", COCO_JSON, '(?<="segmentation": ){.*?}', r"000001\.jpg"),
    ],
    "image and annotation of different shape": [
        ("boxes", "voc", "Annotations/2009_000000.xml", "(?<=<width>)3", r"32 x 32 \(width x height\).*says 12 x 32"),
        ("masks", "npy", "npy/2009_000000.npy", None, r"32 x 32 \(width x height\), its mask 33 x 32.*same resolution"),
    ],
}


@pytest.mark.parametrize(
    ("reason", "kind", "source", "file", "old", "match"), [(key, *row) for key, rows in BROKEN.items() for row in rows]
)
def test_what_is_broken_stops_or_is_counted(root, reason, kind, source, file, old, match):
    path = next(folder / file for folder in (root, root / VOC) if (folder / file).is_file())
    whole = _open(root, kind, source)
    if old is None:
        np.save(path, np.ones((SIDE, SIDE + 1), dtype=bool))
    else:
        path.write_bytes(re.sub(old.encode(), b"1", path.read_bytes(), count=1, flags=re.DOTALL))
    with pytest.raises(ValueError, match=match):
        _open(root, kind, source)[0]
    part = _open(root, kind, source, skip_broken=True)
    assert part.skipped == {reason: 1}
    assert part.image_paths == whole.image_paths[1:]
    assert torch.equal(part[2]["foreground"], whole[3]["foreground"])


@pytest.mark.parametrize(
    ("images", "annotations", "match"),
    [
        ("absent", {}, r"image folder \S+absent does not exist or is not a folder"),
        ("bare", {}, r"no image in \S+bare, searched in depth for \.jpeg"),
        ("coco/val2017", {"boxes": "bare"}, r"no \.xml file in \S+bare.*an XML file per image"),
        ("coco/val2017", {"masks": "bare"}, r"\.png or \.npy"),
        ("coco/val2017", {"masks": "absent"}, "absent"),
        ("coco/val2017", {"boxes": "imagenet/LOC_synset_mapping.txt"}, r"expected COCO's instances_\*\.json"),
        ("coco/val2017", {"boxes": f"{VOC}/Annotations"}, "do they belong together"),
        ("broken", {"skip_broken": True}, r"no image of \S+ is left: skipped {'broken image': 1}"),
    ],
)
def test_wrong_arguments(written, images, annotations, match):
    for name in ("bare", "broken"):
        (written / name).mkdir(exist_ok=True)
    (written / "broken" / "1.jpg").write_text("not an image")
    options = {name: value if name == "skip_broken" else written / value for name, value in annotations.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        ForegroundImages(written / images, AS_IT_IS, **options)


@pytest.mark.parametrize("source", BOXES)
def test_single_objects_are_those_with_a_box(written, source):
    images = _open(written, "boxes", source)
    shares = []
    for sample in (images[index] for index in range(len(images))):
        x1, y1, x2, y2 = sample["box_xyxy"].tolist()
        shares.append((x2 - x1) * (y2 - y1) / (SIDE * SIDE))
    limit, paths = sorted(shares)[2], images.image_paths
    images.keep_single_objects()
    assert (images.image_paths, images.filtered) == (paths, {})
    images.keep_single_objects(limit)
    assert images.image_paths == [path for path, share in zip(paths, shares, strict=True) if share < limit]
    assert images.filtered == {"large box": COUNT - len(images)}
    with pytest.raises(ValueError, match=r"no image of \S+ has exactly one object, .* {'large box': 5}"):
        images.keep_single_objects(1e-9)


def test_several_objects_crowds_and_none_are_left_out(root):
    path = root / COCO_JSON
    content = json.loads(path.read_text())
    objects = content["annotations"]
    crowd = {**objects[1], "id": 901, "iscrowd": 1}
    content["annotations"] = [*objects[:3], *objects[4:], {**objects[0], "id": 900}, crowd]
    path.write_text(json.dumps(content))
    for kind in ("boxes", "masks"):
        images = _open(root, kind, "coco")
        kept = [images.image_paths[index] for index in range(COUNT) if not images[index]["box_xyxy"].isnan().any()]
        assert kept == [images.image_paths[2], images.image_paths[4]]
        images.keep_single_objects()
        assert images.image_paths == kept
        assert images.filtered == {"several objects": 2, "no object": 1}
    with pytest.raises(ValueError, match="do not tell objects apart"):
        _open(root, "masks", "voc").keep_single_objects()


@pytest.mark.parametrize(
    ("side", "grid_hw"), [(8, (4, 4)), (9, (4, 4)), (8, (3, 5)), (10, (7, 7)), (5, (8, 2)), (64, (7, 7))]
)
def test_patches_hold_their_exact_share_of_every_pixel(side, grid_hw):
    """Every pixel as h x w equal parts, of which each patch holds side x side."""
    generator = torch.Generator().manual_seed(side)
    values = torch.tensor([0, 1, 1, 255], dtype=torch.uint8)
    foreground = values[torch.randint(4, (6, side, side), generator=generator)]
    foreground[0, :, : side // 2], foreground[0, :, side // 2 :] = 1, 0  # half of a patch, which is not more than half
    is_foreground, is_known = patch_foreground(foreground, grid_hw)
    parts = foreground.repeat_interleave(grid_hw[0], 1).repeat_interleave(grid_hw[1], 2)
    parts = parts.unflatten(2, (grid_hw[1], side)).unflatten(1, (grid_hw[0], side))
    known, inside = ((parts != 255).sum(dim=(2, 4)).flatten(1), (parts == 1).sum(dim=(2, 4)).flatten(1))
    assert torch.equal(is_known, 2 * known >= side * side)
    assert torch.equal(is_foreground, is_known & (2 * inside > known))
    assert 0 < is_foreground.sum() < is_known.sum()
