"""From a file to samples: records and what is left out, jitter and crop, order, shares of processes, broken images."""

import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode
from ov_classes import OV_COCO_NOVEL
from ov_data import FitSquare, OvImageSet, build_ov_train_loader
from ov_json import clip_box, load_ov_json
from ov_parts import HEIGHT, WIDTH, all_65, coco_categories, lvis_categories, random_content, write_images, write_json
from ov_training import BatchGroups
from PIL import Image

SIDE = 64


@pytest.fixture
def coco(tmp_path):
    content = random_content(coco_categories(all_65()), num_images=8)
    write_images(tmp_path / "images", content)
    return content


@pytest.fixture
def files(coco, tmp_path):
    return write_json(tmp_path / "x.json", coco), tmp_path / "images"


def load(tmp_path, content, train=True, **options):
    return load_ov_json(write_json(tmp_path / "x.json", content), tmp_path / "images", train, **options)


def test_training_records(tmp_path, coco):
    images = load(tmp_path, coco)
    name_of = {entry["id"]: entry["name"] for entry in coco["categories"]}
    novel = [entry for entry in coco["annotations"] if name_of[entry["category_id"]] in OV_COCO_NOVEL]
    base = [entry for entry in coco["annotations"] if entry not in novel]
    objects = [entry for entry in base if not entry["iscrowd"]]
    assert novel
    assert len(objects) < len(base)
    assert images.left_out["object of a novel class"] == len(novel)
    assert images.left_out["crowd region"] == len(base) - len(objects)
    assert [record["image_id"] for record in images.records] == sorted({entry["image_id"] for entry in objects})
    file_of = {entry["id"]: entry["file_name"] for entry in coco["images"]}
    for record in images.records:
        own = [entry for entry in objects if entry["image_id"] == record["image_id"]]
        assert record["file_name"] == str(tmp_path / "images" / file_of[record["image_id"]])
        assert (record["height"], record["width"]) == (HEIGHT, WIDTH)
        for kept, entry in zip(record["annotations"], own, strict=True):
            x, y, w, h = entry["bbox"]
            assert kept["bbox"] == pytest.approx([x, y, x + w, y + h])
            assert kept["bbox_mode"] == BoxMode.XYXY_ABS
            assert images.classes.names[kept["category_id"]] == name_of[entry["category_id"]]
            assert "segmentation" not in kept
    tested = load(tmp_path, coco, train=False)
    assert [record["image_id"] for record in tested.records] == sorted(entry["id"] for entry in coco["images"])
    assert not any("annotations" in record for record in tested.records)


def test_masks_are_kept_when_asked_for(tmp_path, coco):
    objects = [entry for entry in coco["annotations"] if not entry["iscrowd"]]
    objects[0]["segmentation"] = [[1, 2, 3, 4], objects[0]["segmentation"][0]]
    objects[1]["segmentation"] = [[1, 2, 3, 4]]
    del objects[2]["segmentation"]
    images = load(tmp_path, coco, masks=True, novel=())
    kept = [entry for record in images.records for entry in record["annotations"]]
    assert len(kept) == len(objects) - 2
    assert images.left_out["object without a mask"] == 2
    assert all(len(entry["segmentation"]) == 1 for entry in kept)
    assert "object without a mask" not in load(tmp_path, coco, novel=()).left_out


@pytest.mark.parametrize(
    ("bbox", "expected"),
    [
        ([1, 2, 3, 4], [1, 2, 4, 6]),
        ([-5, -5, 10, 10], [0, 0, 5, 5]),
        ([50, 40, 100, 100], [50, 40, 64, 48]),
        ([1, 2, 1, 1], [1, 2, 2, 3]),
        ([-5, 2, 5.5, 4], [0, 2, 0.5, 6]),  # half a pixel is in the image, the object is larger
        ([1, 2, 0.99, 4], None),
        ([1, 2, 3, 0.99], None),
        ([1, 2, 3, -4], None),
        ([70, 2, 3, 4], None),
        ([-9, 2, 9, 4], None),
    ],
)
def test_boxes(tmp_path, coco, bbox, expected):
    assert clip_box(bbox, HEIGHT, WIDTH) == expected
    chosen = next(entry for entry in coco["annotations"] if not entry["iscrowd"])
    chosen["bbox"] = bbox
    assert load(tmp_path, coco, novel=()).left_out["box outside its image or under a pixel"] == (expected is None)
    for broken in (bbox[:3], None, "abcd", [*bbox[:3], float("nan")], [*bbox[:3], True], [*bbox[:3], "4"]):
        with pytest.raises(ValueError, match=r"bbox is .* expected four numbers"):
            clip_box(broken, HEIGHT, WIDTH)


def test_images_that_are_left_out(tmp_path, coco):
    first, second, third, fourth = (entry["id"] for entry in coco["images"][:4])
    coco["annotations"] = [entry for entry in coco["annotations"] if entry["image_id"] != first]
    coco["images"][1]["height"] = 31
    for entry in coco["annotations"]:
        if entry["image_id"] == third:
            entry["iscrowd"] = 1
        elif entry["image_id"] == fourth:
            entry["bbox"][2] = 0.5
    images = load(tmp_path, coco, novel=())
    left = {record["image_id"]: record["annotations"] for record in images.records}
    assert not {first, second} & set(left)
    assert images.left_out["image without objects"] == 1
    assert images.left_out["image with a side of less than 32 pixels"] == 1
    assert left[third] == left[fourth] == []  # background, as in F-ViT
    dataset = OvImageSet(tmp_path / "x.json", tmp_path / "images", 32, train=True, masks=True, novel=())
    assert len(dataset[sorted(left).index(third)]["instances"]) == 0
    with pytest.raises(ValueError, match=r"no image is left to train on \(.*'image without objects': 8"):
        load(tmp_path, {**coco, "annotations": []})


def test_lvis_paths_and_rare_classes(tmp_path):
    content = random_content(lvis_categories(9), crowds=False)
    content["images"][0].update(coco_url="http://host/train2017/7.png", file_name="not this one.png")
    write_images(tmp_path / "images", {"images": [{**entry, "file_name": None} for entry in content["images"]]})
    images = load(tmp_path, content, train=False)
    folders = {record["image_id"]: record["file_name"].split("/")[-2] for record in images.records}
    assert folders.pop(content["images"][0]["id"]) == "train2017"
    assert set(folders.values()) == {"val2017"}
    training = load(tmp_path, content)
    assert all(training.classes.is_base[e["category_id"]] for record in training.records for e in record["annotations"])
    assert training.left_out["object of a novel class"] > 0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda made: made["images"][0].pop("file_name"), "has no file_name"),
        (lambda made: made["images"][0].update(height=0), "has the height 0 and the width 64"),
        (lambda made: made["images"][0].update(width="64"), "the width '64'"),
        (lambda made: [entry.update(file_name="x") for entry in made["images"]], r"image_root .*images the right one"),
    ],
)
def test_wrong_files(tmp_path, coco, change, text):
    change(coco)
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        load(tmp_path, coco)


def one_image(tmp_path, height=90, width=120, box=(80, 50, 30, 30), orientation=1, **options):
    """A data set of one black image with a red box (COCO's x, y, w, h), whose mask is the box."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    x, y, w, h = box
    pixels[y : y + h, x : x + w] = (250, 20, 10)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    entry = {"id": 0, "image_id": 5, "category_id": 1, "bbox": [*box]}
    content = {
        "images": [{"id": 5, "file_name": "x.png", "height": height, "width": width}],
        "categories": [{"id": 1, "name": "red"}],
        "annotations": [{**entry, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}],
    }
    return OvImageSet(write_json(tmp_path / "x.json", content), tmp_path, SIDE, novel=(), **options)


def box_of(mask):
    rows, columns = np.nonzero(mask.numpy())
    return torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()


@pytest.mark.parametrize("masks", [False, True])
def test_boxes_follow_the_pixels(tmp_path, masks):
    dataset = one_image(tmp_path, train=True, masks=masks)
    longest, empty, flips = [], 0, 0
    for seed in range(60):
        torch.manual_seed(seed)
        sample = dataset[0]
        image, instances = sample["image"], sample["instances"]
        assert (image.dtype, image.shape[0]) == (torch.uint8, 3)
        assert instances.image_size == tuple(image.shape[1:])
        longest.append(max(image.shape[1:]))
        if not len(instances):
            empty += 1
            assert (image[0] > 125).sum() < 0.05 * image[0].numel()
            continue
        found = instances.gt_boxes.tensor[0]
        assert instances.gt_classes.tolist() == [0]
        assert (found - box_of(image[0] > 125)).abs().max() <= 2
        assert (image[0].float() - image[2].float()).max() > 200  # RGB
        flips += bool((found[0] + found[2]) / 2 > image.shape[2] / 2)
        if masks:
            drawn = instances.gt_masks.tensor[0]
            assert drawn.shape == image.shape[1:]
            assert torch.equal(found, box_of(drawn))
    # 0.1 to 2 times the square, cut at 1; the smallest of 60 draws
    assert max(longest) <= SIDE
    assert min(longest) < 0.25 * SIDE
    assert 20 < longest.count(SIDE) < 50
    assert 0 < empty < 15
    assert 10 < flips < 50


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_and_boxes_stay_as_they_are_stored(tmp_path, orientation):
    """Whatever EXIF says of the camera; in training, with masks, and in test."""
    options = {"orientation": orientation, "box": (80, 50, 30, 30)}
    sample = one_image(tmp_path, **options, train=True, masks=True, augment=False)[0]
    assert sample["image"].shape == (3, 48, 64)
    expected = torch.tensor([80.0, 50, 110, 80]) * 64 / 120
    for box in (sample["instances"].gt_boxes.tensor[0], box_of(sample["image"][0] > 125)):
        assert (box - expected).abs().max() <= 1
    assert torch.equal(sample["image"], one_image(tmp_path, **options, train=False)[0]["image"])


def test_pixels_are_opencvs(tmp_path):
    """Red values of cv2.resize(pixels, (4, 3), interpolation=cv2.INTER_LINEAR); with antialias they are Pillow's."""
    pixels = (np.arange(5 * 7 * 3) * 37 % 256).astype(np.uint8).reshape(5, 7, 3)
    found = FitSquare(4).get_transform(pixels).apply_image(pixels)[..., 0].astype(int)
    assert np.abs(found - [[44, 207, 177, 115], [60, 222, 192, 130], [74, 87, 207, 145]]).max() <= 1
    for antialias in (False, True):
        dataset = one_image(tmp_path, 120, 120, train=False, antialias=antialias)
        pillow = np.array(Image.open(tmp_path / "x.png").resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        assert np.array_equal(dataset[0]["image"].permute(1, 2, 0), pillow) == antialias


def test_test_images_fit_the_square(tmp_path):
    for height, width, shape in ((90, 120, (48, 64)), (120, 30, (64, 16)), (32, 64, (32, 64))):
        dataset = one_image(tmp_path, height, width, (1, 1, 8, 8), train=False)
        sample = dataset[0]
        assert tuple(sample["image"].shape[1:]) == shape
        assert (sample["height"], sample["width"], sample["image_id"]) == (height, width, 5)
        assert "instances" not in sample
        assert torch.equal(sample["image"], dataset[0]["image"])


def test_broken_images(tmp_path):
    def refuse(error, match, change):
        dataset = one_image(tmp_path, train=True, masks=True)
        dataset._records = [dataset._records[0]]
        change(dataset._records[0])
        with pytest.raises(error, match=match):
            dataset[0]

    refuse(
        ValueError, r"x\.png cannot be used: Mismatched image shape", lambda it: it.update(height=91, annotations=[])
    )
    broken = {"size": [1, 2], "counts": [2]}
    refuse(ValueError, r"x.png cannot.*size \[1, 2\]", lambda it: it["annotations"][0].update(segmentation=broken))
    refuse(FileNotFoundError, "no image nowhere.png", lambda it: it.update(file_name="nowhere.png"))
    whole = (tmp_path / "x.png").read_bytes()
    for name, content in (("cut.png", whole[: len(whole) // 2]), ("text.jpg", b"text"), ("empty.jpg", b"")):
        (tmp_path / name).write_bytes(content)
        path = str(tmp_path / name)
        refuse(ValueError, f"{name} cannot be used", lambda it, path=path: it.update(file_name=path))


def images_of(dataset, number, workers=0, start=0):
    loader = build_ov_train_loader(dataset, batch_size=2, num_workers=workers, seed=5)
    loader.batch_sampler.start_iteration = start
    batches = [batch for _, batch in zip(range(number), loader, strict=False)]
    assert all(isinstance(batch, list) and len(batch) == 2 for batch in batches)
    return [sample["image"] for batch in batches for sample in batch]


def test_training_order_resumes_with_any_number_of_workers(files):
    dataset = OvImageSet(*files, size=32, train=True)
    state = np.random.get_state()[1].copy()
    whole = images_of(dataset, 8)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    for start, again in ((0, images_of(dataset, 8, workers=2)), (10, images_of(dataset, 3, start=5))):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(whole[start:], again, strict=True))
    groups = BatchGroups(build_ov_train_loader(dataset, batch_size=2, num_workers=0, seed=5), 3)
    groups.batch_sampler.start_iteration = 1  # after three batches of two
    again = [sample["image"] for batch in next(iter(groups)) for sample in batch]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(whole[6:12], again, strict=True))


def test_a_few_images_as_they_are_tested(files):
    """For learning a few images by heart: the same pixels every time, and the ids of the images that are left."""
    every = OvImageSet(*files, size=32, train=False)
    tested = OvImageSet(*files, size=32, train=False, max_images=3)
    trained = OvImageSet(*files, size=32, train=True, augment=False, max_images=3)
    assert len(tested) == len(trained) == 3
    assert tested.image_ids == every.image_ids[:3]
    for index, number in enumerate(trained.image_ids):
        assert trained[index]["image_id"] == number
        assert torch.equal(trained[index]["image"], every[every.image_ids.index(number)]["image"])
        assert len(trained[index]["instances"]) > 0
    for name in ("size", "max_images"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1"):
            OvImageSet(*files, **{"size": 32, "train": True, name: 0})
