"""Segmentation sets in their official layouts: the right file, the right class, and an error for everything else."""

import numpy as np
import pytest
import torch
from seg_parts import HW, make_cityscapes, make_coco, make_voc, save_image, save_label
from seg_sets import SegmentationSet, resize_samples, resize_short_side

from last_vit.data.image_files import load_rgb

# what a label file holds -> classes
CASES = {
    "voc20": ([0, 1, 20, 255], [255, 0, 19, 255]),
    "voc21": ([0, 1, 20, 255], [0, 1, 20, 255]),
    "context59": ([0, 1, 59, 255], [255, 0, 58, 255]),
    "context60": ([0, 1, 59, 255], [0, 1, 59, 255]),
    "coco_object": ([0, 89, 91, 181, 255], [1, 80, 0, 0, 0]),
    "coco_stuff": ([0, 89, 91, 181, 255], [0, 79, 80, 170, 255]),
    "ade20k": ([0, 1, 150, 255], [255, 0, 149, 255]),
    "cityscapes": ([0, 7, 33, 29], [255, 0, 18, 255]),
}


def make(dataset, root, values, stems=("b", "a")):
    labels = dict.fromkeys(stems, values)
    if dataset.startswith("voc"):
        return make_voc(root, labels)
    if dataset.startswith("context"):
        return make_voc(root, labels, 2010, "SegmentationClassContext", "SegmentationContext")
    if dataset.startswith("coco"):
        return make_coco(root, labels)
    if dataset == "ade20k":
        for stem in stems:
            save_image(root / "images/validation" / f"{stem}.jpg")
            save_label(root / "annotations/validation" / f"{stem}.png", values)
        return root
    return make_cityscapes(root, {f"ulm/{stem}": values for stem in stems})


@pytest.mark.parametrize("dataset", CASES)
def test_official_layouts(dataset, tmp_path):
    for root, message in ((tmp_path / "absent", "absent does not exist"), (tmp_path, "holds no ")):
        with pytest.raises(FileNotFoundError, match=rf"{message}.*expected"):
            SegmentationSet(dataset, root)
    values, classes = CASES[dataset]
    official = {"voc": 1449, "con": 5104, "coc": 5000, "ade": 2000, "cit": 500}[dataset[:3]]
    with pytest.raises(ValueError, match=rf"{dataset} val .* has 2 images, the official set {official}: .*any_count"):
        SegmentationSet(dataset, make(dataset, tmp_path, values))
    images = SegmentationSet(dataset, make(dataset, tmp_path, values), any_count=True)
    assert len(images) == 2
    assert not images.is_complete
    sample = images[1]
    assert (set(sample), sample["index"]) == ({"image", "label", "index", "name"}, 1)
    assert sample["label"].dtype == sample["image"].dtype == torch.uint8
    assert sample["label"].shape == sample["image"].shape[1:] == HW
    assert sample["label"].flatten()[: len(classes)].tolist() == classes
    assert torch.equal(resize_samples([sample], 2)[0]["image"], resize_short_side(sample["image"], 2))
    stored = np.array(load_rgb(images.files.images[1]))
    assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), stored)
    in_list_order = dataset.startswith(("voc", "context"))
    stems = ["b", "a"] if in_list_order else ["a", "b"]
    assert images.files.names == [f"ulm/{stem}" if dataset == "cityscapes" else stem for stem in stems]


def test_roots_above_are_found(tmp_path):
    make_voc(tmp_path / "VOCdevkit", {"a": [1]})
    make_voc(tmp_path / "VOCdevkit", {"b": [1]}, 2010, "SegmentationClassContext", "SegmentationContext")
    for root in (tmp_path, tmp_path / "VOCdevkit"):
        assert SegmentationSet("voc21", root, any_count=True).files.names == ["a"]
        assert SegmentationSet("context60", root, any_count=True).files.names == ["b"]
    make("ade20k", tmp_path / "ADEChallengeData2016", [1])
    assert len(SegmentationSet("ade20k", tmp_path, any_count=True)) == 2


def test_converted_maps_come_before_raw_ones(tmp_path):
    make_coco(tmp_path, {"7": [91]})
    make_coco(tmp_path, {"7": [5]}, "annotations/val2017", "_labelTrainIds.png")
    make_coco(tmp_path, {"7": [6]}, "annotations/val2017", "_instanceTrainIds.png")
    make_coco(tmp_path, {"7": [0]}, "annotations/val2017", images="val2017")  # COCO's own place
    for dataset, label in (("coco_stuff", 5), ("coco_object", 6)):
        assert SegmentationSet(dataset, tmp_path, any_count=True).label(0).unique().tolist() == [label]
    city = make_cityscapes(tmp_path / "city", {"ulm/1": [7]})
    make_cityscapes(city, {"ulm/1": [18]}, "_gtFine_labelTrainIds.png")
    assert SegmentationSet("cityscapes", city, any_count=True).label(0).unique().tolist() == [18]


def test_other_splits(tmp_path):
    root = make_voc(tmp_path, {"a": [1]}, split="train")
    assert SegmentationSet("voc20", root, "train", any_count=True).expected_images == 1464
    with pytest.raises(ValueError, match="split of voc20 must be one of train, val, trainval, got 'test'"):
        SegmentationSet("voc20", root, "test")
    with pytest.raises(FileNotFoundError, match=r"val\.txt; lists there: train"):
        SegmentationSet("voc20", root)


@pytest.mark.parametrize(("dataset", "held", "message"), [
    ("voc20", 21, r"holds 21, which is no class: classes are 1 to 20, and 0 and 255 ignored"),
    ("voc21", 21, r"holds 21, which is no class: classes are 0 to 20, and 255 ignored"),
    ("ade20k", 151, r"holds 151, which is no class: classes are 1 to 150, and 0 and 255 ignored"),
    ("coco_stuff", 182, r"holds the ids 182, which are none"),
    ("cityscapes", 34, r"holds the ids 34, which are none"),
])  # fmt: skip
def test_ids_outside_the_classes_are_refused(dataset, held, message, tmp_path):
    images = SegmentationSet(dataset, make(dataset, tmp_path, [1, held]), any_count=True)
    with pytest.raises(ValueError, match=rf"label .*\.png: it {message}"):
        images[0]


@pytest.mark.parametrize("dataset", CASES)
def test_a_missing_label_is_named(dataset, tmp_path):
    root = make(dataset, tmp_path, [7])
    first, second = sorted(path for path in root.rglob("*.png") if "leftImg8bit" not in path.name)
    for path, message in ((first, r"1 of the 2 images have no label, such as .*a.*\.png"), (second, "no label")):
        path.unlink()
        with pytest.raises(FileNotFoundError, match=message):
            SegmentationSet(dataset, root, any_count=True)


def test_files_of_another_size_or_kind_are_refused(tmp_path):
    images = SegmentationSet("ade20k", make("ade20k", tmp_path, [1]), any_count=True)
    label = images.files.labels[0]
    save_label(label, np.ones((6, 4), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"label .*a\.png has 4 x 6 pixels, its image .*a\.jpg 6 x 4"):
        images[0]
    save_label(label, np.zeros((*HW, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"a\.png cannot be read: its mode is RGB"):
        images[0]
    for path in (images.files.images[1], images.files.labels[1]):
        path.write_bytes(path.read_bytes()[:50])
        with pytest.raises(ValueError, match=path.name):
            images[1]
    make_coco(tmp_path, {"1": [0], "2": [0]})
    (tmp_path / "images/val2017/2.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 of the 2 labels in .*/val2017 have no image, such as .*2\.png"):
        SegmentationSet("coco_stuff", tmp_path, any_count=True)


@pytest.mark.parametrize(("zero_label", "classes"), [("class", [0, 1, 255]), ("background", [0, 1, 255]),
                                                    ("ignored", [255, 0, 255])])  # fmt: skip
def test_custom_folders(zero_label, classes, tmp_path):
    for name in ("x/1.png", "2.jpeg"):
        save_image(tmp_path / "images" / name)
        save_label((tmp_path / "labels" / name).with_suffix(".png"), [0, 1, 255])
    names = (("floor",), ("chair", "stool"))
    images = SegmentationSet("custom", tmp_path, class_names=names, zero_label=zero_label)
    assert images.is_complete
    assert images.names == ("floor", "chair")
    assert images.files.names == ["2", "x/1"]
    assert images[0]["label"].flatten()[:3].tolist() == classes
    assert images.setting.has_background == (zero_label == "background")
    too_high = 2 + (zero_label == "ignored")
    save_label(tmp_path / "labels/2.png", [too_high])
    with pytest.raises(ValueError, match=f"holds {too_high}, which is no class"):
        images.label(0)


def test_custom_folders_by_split_and_as_voc(tmp_path):
    names = (("a",), ("b",))
    with pytest.raises(FileNotFoundError, match=r"holds no images in images/; expected a VOC folder .*, or images/"):
        SegmentationSet("custom", tmp_path, class_names=names)
    for split in ("train", "val"):
        save_image(tmp_path / "images" / split / f"{split}.jpg")
        save_label(tmp_path / "labels" / split / f"{split}.png", np.ones(HW, dtype=bool))
    images = SegmentationSet("custom", tmp_path, "train", class_names=names)
    assert (images.files.names, images.label(0).unique().tolist()) == (["train"], [1])
    voc = make_voc(tmp_path, {"7": [0, 1]})
    assert SegmentationSet("custom", voc, class_names=names).label(0).unique().tolist() == [0, 1]


def plain_bilinear(image, size):
    """Half-pixel centres, two neighbours per side, no smoothing; float64."""
    image = image.double().numpy()
    axes = []
    for length, output in zip(image.shape[1:], size, strict=True):
        centre = np.clip((np.arange(output) + 0.5) * length / output - 0.5, 0, length - 1)
        low = np.floor(centre).astype(int)
        axes.append((low, np.minimum(low + 1, length - 1), centre - low))
    (y0, y1, fy), (x0, x1, fx) = axes
    rows = image[:, y0] * (1 - fy)[:, None] + image[:, y1] * fy[:, None]
    return rows[..., x0] * (1 - fx) + rows[..., x1] * fx


@pytest.mark.parametrize(
    ("image_hw", "short_side", "expected"),
    [
        ((375, 500), 336, (336, 448)),  # VOC
        ((512, 683), 336, (336, 448)),  # ADE20K: 448.2
        ((500, 333), 448, (673, 448)),  # 672.67 rounds up
        ((100, 1000), 336, (205, 2048)),  # the longer side binds: 204.8 rounds up
        ((336, 400), 336, (336, 400)),
    ],
)
def test_sizes_are_mmcvs(image_hw, short_side, expected):
    assert resize_short_side(torch.zeros(3, *image_hw, dtype=torch.uint8), short_side).shape == (3, *expected)


@pytest.mark.parametrize(("image_hw", "short_side"), [((40, 61), 23), ((17, 12), 30), ((90, 90), 11)])
def test_values_are_bilinear_without_antialias(image_hw, short_side):
    image = torch.randint(0, 256, (3, *image_hw), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert resize_short_side(image, min(image_hw)) is image
    found = resize_short_side(image, short_side)
    # rounded; a half that float32 puts on the other side is right, too
    assert np.abs(found.numpy() - plain_bilinear(image, found.shape[1:])).max() <= 0.5 + 1e-4
