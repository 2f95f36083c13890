"""ImageNetDataset over every layout, its boxes and filters, and the faults that it names or counts."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from last_vit.boxes import box_area
from last_vit.data.imagenet import ImageNetDataset
from last_vit.data.imagenet_layout import annotation_finder
from last_vit.data.synthetic import SyntheticObjects, write_imagenet
from last_vit.data.transforms import EvalTransform
from last_vit.runtime import get_logger

NUM_TRAIN, NUM_VAL, CLASSES = 6, 8, 4
TRANSFORM = EvalTransform(32, 32)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenet")
    for split, count in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        write_imagenet(SyntheticObjects(count, split, image_size=32, num_classes=CLASSES), root)
    return root


@pytest.fixture
def root(written, tmp_path):
    return shutil.copytree(written, tmp_path / "imagenet")


def _first_xml(root):
    return min((root / "Annotations" / "CLS-LOC" / "val").rglob("*.xml"))


def _edit(path, *changes):
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


def _element(path):
    text = path.read_text()
    return text[text.index("<object>") : text.index("</object>") + len("</object>")]


@pytest.mark.parametrize(("split", "count"), [("train", NUM_TRAIN), ("val", NUM_VAL)])
@pytest.mark.parametrize("place", [".", "val", "train"])
def test_root_split_folder_and_sibling(written, split, count, place):
    dataset = ImageNetDataset(written / place, split, TRANSFORM, boxes=True)
    assert len(dataset) == len(dataset.image_paths) == count
    assert dataset.classes == [f"n{label:08d}" for label in range(CLASSES)]
    folders = [f"/{split}/{dataset.classes[label]}/" for label in dataset.labels]
    assert all(folder in path for folder, path in zip(folders, dataset.image_paths, strict=True))


def test_samples_are_what_was_written(written):
    source = SyntheticObjects(NUM_VAL, "val", image_size=32, num_classes=CLASSES)
    dataset, bare = ImageNetDataset(written, "val", TRANSFORM, boxes=True), ImageNetDataset(written, "val")
    for index, path in enumerate(dataset.image_paths):
        sample, origin, pixels = dataset[index], source.render(int(path[-13:-5]) - 1), bare[index]
        assert sample["image"].shape == (3, 32, 32)
        assert (sample["index"], sample["label"], sample["num_objects"]) == (index, origin.label, 1)
        assert torch.equal(sample["box_xyxy"], origin.box_xyxy)
        assert sample["image_hw"].tolist() == pixels["image_hw"].tolist() == [32, 32]
        assert pixels["image"].dtype == torch.uint8
        error = pixels["image"].permute(1, 2, 0).numpy().astype(float) - np.asarray(origin.image)
        assert np.abs(error).mean() < 12  # JPEG
        assert pixels["box_xyxy"].isnan().all()
        assert pixels["num_objects"] == -1
    batch = torch.utils.data.default_collate([dataset[0], dataset[1]])
    assert batch["box_xyxy"].shape == (2, 4)
    assert batch["label"].dtype == batch["image_hw"].dtype == torch.int64


def test_kaggle_layout(root, tmp_path):
    kaggle = tmp_path / "kaggle"
    (kaggle / "ILSVRC" / "Data").mkdir(parents=True)
    wnid_of = {path.stem: path.parent.name for path in (root / "val").glob("*/*")}
    for image in (root / "val").glob("*/*"):
        image.rename(root / "val" / image.name)
    for name in set(wnid_of.values()):
        (root / "val" / name).rmdir()
    shutil.move(root / "Annotations", kaggle / "ILSVRC" / "Annotations")
    shutil.move(root / "LOC_synset_mapping.txt", kaggle)
    shutil.move(root, kaggle / "ILSVRC" / "Data" / "CLS-LOC")
    assert set(ImageNetDataset(kaggle, "val", TRANSFORM, boxes=True).labels.tolist()) == {-1}
    with pytest.raises(ValueError, match=r"LOC_val_solution\.csv"):
        ImageNetDataset(kaggle, "val", TRANSFORM)
    rows = "".join(f"{stem},{wnid} 1 2 3 4 {wnid} 5 6 7 8 \n" for stem, wnid in wnid_of.items())
    # as Kaggle's is saved by spreadsheets
    (kaggle / "LOC_val_solution.csv").write_text("\ufeffImageId,PredictionString\n" + rows, encoding="utf-8")
    dataset = ImageNetDataset(kaggle, "val", TRANSFORM, boxes=True)
    assert [dataset.classes[label] for label in dataset.labels] == [wnid_of[Path(p).stem] for p in dataset.image_paths]
    assert len(ImageNetDataset(kaggle, "train", TRANSFORM, boxes=True)) == NUM_TRAIN
    (kaggle / "LOC_synset_mapping.txt").unlink()
    with pytest.raises(ValueError, match=r"LOC_synset_mapping\.txt"):
        ImageNetDataset(kaggle, "val", TRANSFORM)


def test_annotations_in_class_folders_and_elsewhere(root, tmp_path):
    flat = ImageNetDataset(root, "val", boxes=True).boxes_xyxy
    folder = root / "Annotations" / "CLS-LOC" / "val"
    for image in (root / "val").glob("*/*"):
        (folder / image.parent.name).mkdir(exist_ok=True)
        (folder / f"{image.stem}.xml").rename(folder / image.parent.name / f"{image.stem}.xml")
    assert np.array_equal(ImageNetDataset(root, "val", boxes=True).boxes_xyxy, flat)
    moved = shutil.move(root / "Annotations", tmp_path / "labels")
    for place in (moved, moved / "CLS-LOC" / "val"):
        assert np.array_equal(ImageNetDataset(root, "val", boxes=True, annotation_root=place).boxes_xyxy, flat)
    with pytest.raises(FileNotFoundError, match=r"Annotations.*ILSVRC2012_bbox_val_v3\.tgz.*annotation_root"):
        ImageNetDataset(root, "val", boxes=True)


@pytest.mark.parametrize(("number", "words"), [(0, "no object"), (2, "several objects")])
def test_images_without_one_object(root, number, words):
    path = _first_xml(root)
    _edit(path, (_element(path), _element(path) * number))
    whole = ImageNetDataset(root, "val", boxes=True)
    (index,) = np.flatnonzero(whole.num_objects == number)
    assert whole[index]["box_xyxy"].isnan().all()
    single = ImageNetDataset(root, "val", boxes=True, single_object=True)
    assert (len(single), single.filtered) == (NUM_VAL - 1, {words: 1})


def test_large_boxes_are_filtered(written):
    single = ImageNetDataset(written, "val", boxes=True, single_object=True)
    shares = box_area(torch.from_numpy(single.boxes_xyxy)) / 32**2
    limit = float(shares.sort().values[3])
    small = ImageNetDataset(written, "val", boxes=True, single_object=True, max_box_area=limit)
    assert len(small) == len(small.boxes_xyxy) == int((shares < limit).sum()) == 3
    assert small.filtered == {"large box": NUM_VAL - 3}
    assert small[1]["index"] == 1
    with pytest.raises(ValueError, match=r"no image .* is left.*large box"):
        ImageNetDataset(written, "val", boxes=True, single_object=True, max_box_area=1e-6)


@pytest.mark.parametrize(
    ("spoil", "error", "message", "reason"),
    [
        (lambda path: _edit(path, ("<xmin>", "<xmin>9")), ValueError, "nothing inside", "broken annotation"),
        (lambda path: path.unlink(), FileNotFoundError, "skip_broken", "no annotation"),
    ],
    ids=["box-outside", "missing"],
)
def test_broken_annotation_stops_or_is_counted(root, spoil, error, message, reason):
    path = _first_xml(root)
    spoil(path)
    with pytest.raises(error, match=rf"{path.name}.*{message}"):
        ImageNetDataset(root, "val", boxes=True)
    dataset = ImageNetDataset(root, "val", TRANSFORM, boxes=True, skip_broken=True)
    assert dataset.skipped == {reason: 1}
    assert len(dataset) == len(dataset.labels) == len(dataset.boxes_xyxy) == NUM_VAL - 1


def test_truncated_image_stops_or_is_counted(root):
    dataset = ImageNetDataset(root, "val", TRANSFORM, boxes=True)
    broken = dataset.image_paths[3]
    with open(broken, "r+b") as file:
        file.truncate(500)
    with pytest.raises(ValueError, match=broken):
        dataset[3]
    sound = ImageNetDataset(root, "val", TRANSFORM, boxes=True, skip_broken=True)
    assert sound.skipped == {"broken image": 1}
    assert sound.image_paths == dataset.image_paths[:3] + dataset.image_paths[4:]
    assert np.array_equal(sound.labels, np.delete(dataset.labels, 3))
    assert np.array_equal(sound.boxes_xyxy, np.delete(dataset.boxes_xyxy, 3, axis=0))


def test_annotation_of_another_shape_is_a_fault_and_a_scaled_one_its_own_frame(root):
    path = _first_xml(root)
    _edit(path, ("<width>32</width>", "<width>64</width>"))
    dataset = ImageNetDataset(root, "val", TRANSFORM, boxes=True)
    (index,) = [i for i, image in enumerate(dataset.image_paths) if path.stem in image]
    with pytest.raises(ValueError, match=r"32 x 32.*64 x 32"):
        dataset[index]
    sound = ImageNetDataset(root, "val", TRANSFORM, boxes=True, skip_broken=True)
    assert sound.skipped == {"image and annotation of different shape": 1}
    _edit(path, ("<height>32</height>", "<height>64</height>"))
    assert ImageNetDataset(root, "val", TRANSFORM, boxes=True)[index]["image_hw"].tolist() == [64, 64]


def test_empty_class_folder_stops_or_stays_a_class(root):
    shutil.rmtree(root / "val" / "n00000001")
    (root / "val" / "n00000001").mkdir()
    with pytest.raises(ValueError, match=r"n00000001 has no image.*renumbers"):
        ImageNetDataset(root, "val")
    dataset = ImageNetDataset(root, "val", skip_broken=True)
    assert dataset.skipped == {"empty class folder": 1}
    assert len(dataset.classes) == CLASSES
    assert set(dataset.labels.tolist()) == {0, 2, 3}


def test_wrong_root(root, tmp_path):
    for wrong in (tmp_path / "absent", tmp_path, root / "train" / "n00000000"):
        with pytest.raises(FileNotFoundError, match=rf"{wrong}.*expected class folders.*image-net\.org"):
            ImageNetDataset(wrong, "val")
    (tmp_path / "hollow" / "val" / "n1").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no image in the 1 folders"):
        ImageNetDataset(tmp_path / "hollow", "val")
    with pytest.raises(ValueError, match="one of train, val"):
        ImageNetDataset(root, "validation")
    image = next((root / "val").glob("*/*"))
    image.rename(root / "val" / image.name)
    with pytest.raises(ValueError, match="1 images beside 4 class folders"):
        ImageNetDataset(root, "val")
    shutil.rmtree(root / "val")
    renamed = shutil.copytree(root / "train", root / "my_train_images")
    for training in (root / "train", renamed):  # never passes for val
        with pytest.raises(FileNotFoundError):
            ImageNetDataset(training, "val")
        assert len(ImageNetDataset(training, "train")) == NUM_TRAIN


@pytest.mark.parametrize(
    "arguments",
    [
        {"single_object": True},
        {"annotation_root": "x"},
        {"boxes": True, "max_box_area": 0.25},
        {"boxes": True, "single_object": True, "max_box_area": 25},
    ],
)
def test_contradicting_arguments(written, arguments):
    with pytest.raises(ValueError, match="box"):
        ImageNetDataset(written, "val", **arguments)


def test_any_folder_of_class_folders(root):
    """split=None: the folder itself, whatever it is called."""
    shapes = (root / "val").rename(root / "shapes")
    dataset = ImageNetDataset(shapes, None)
    assert dataset.folder == shapes
    assert dataset.classes == [f"n{label:08d}" for label in range(CLASSES)]
    assert dataset.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        ImageNetDataset(root / "nowhere", None)
    boxed = ImageNetDataset(shapes, None, boxes=True, annotation_root=root / "Annotations/CLS-LOC/val")
    assert boxed.num_objects.tolist() == [1] * NUM_VAL


@pytest.fixture
def said():
    """What the log says, line by line."""
    lines, handler = [], logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    get_logger().addHandler(handler)
    yield lines
    get_logger().removeHandler(handler)


def _write_classes(root, names, suffix=".png"):
    for label, name in enumerate(names):
        (root / name).mkdir(parents=True)
        Image.new("RGB", (4, 4), (label, 0, 0)).save(root / name / f"0{suffix}")


def test_class_folders_that_are_numbers_are_taken_in_numeric_order(tmp_path, said):
    """ImageNetV2's layout: a classifier that is always right is right."""
    names = [str(label) for label in range(1000)]
    _write_classes(tmp_path / "v2", names)
    dataset = ImageNetDataset(tmp_path / "v2", None)
    assert dataset.classes == names
    assert [int(Path(path).parent.name) for path in dataset.image_paths] == dataset.labels.tolist()
    assert [line.count("numeric order") for line in said] == [1]
    (tmp_path / "v2" / "10").rename(tmp_path / "v2" / "ten")  # one name that is none: text order, as torchvision's
    assert ImageNetDataset(tmp_path / "v2", None).classes == sorted({*names, "ten"} - {"10"})


@pytest.mark.parametrize("place", ["", "val", "..", "../.."])
def test_a_subset_has_the_numbers_of_its_mapping(tmp_path, place):
    root = tmp_path / "above" / "of" / "root"
    _write_classes(root / "val", ["n00000007", "n00000002"])
    mapping = "\ufeff" + "".join(f"n{number:08d} class, {number}\n" for number in (9, 2, 4, 7))
    (root / place / "LOC_synset_mapping.txt").write_text(mapping, encoding="utf-8")
    dataset = ImageNetDataset(root, "val")
    assert (dataset.classes, dataset.labels.tolist()) == (["n00000002", "n00000007"], [0, 1])
    dataset.number_as(4)
    assert dataset.classes == ["n00000002", "n00000004", "n00000007", "n00000009"]
    assert dataset.labels.tolist() == [dataset[0]["label"], dataset[1]["label"]] == [0, 2]
    dataset.number_as(2)  # another model's
    assert (dataset.classes, dataset.labels.tolist()) == (["n00000002", "n00000007"], [0, 1])
    with pytest.raises(ValueError, match=r"has 2 classes, the classifier 5: .*mapping\.txt numbers 4 classes, 2 of"):
        dataset.number_as(5)


def test_a_subset_without_mapping_is_numbered_by_the_known_synsets_or_refused(tmp_path):
    _write_classes(tmp_path / "val", ["n01443537", "n15075141"])
    dataset = ImageNetDataset(tmp_path, "val")
    dataset.number_as(1000)
    assert (len(dataset.classes), dataset.labels.tolist()) == (1000, [1, 999])
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01443537 fish\nn15075141 paper\n")  # of those here alone
    dataset.number_as(1000)
    assert dataset.labels.tolist() == [1, 999]
    (tmp_path / "LOC_synset_mapping.txt").unlink()
    (tmp_path / "val" / "n15075141").rename(tmp_path / "val" / "n99999999")
    with pytest.raises(ValueError, match=r"LOC_synset_mapping\.txt is in neither .*no part of ImageNet-1k"):
        ImageNetDataset(tmp_path, "val").number_as(1000)


def test_every_image_of_a_class_folder_is_read_and_the_rest_is_counted(tmp_path, said):
    """Sub-folders (Tiny-ImageNet's images/), torchvision's endings, a folder called as an image."""
    endings = [".JPEG", ".jpg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".TIFF", ".webp"]
    for number, ending in enumerate(endings):
        folder = tmp_path / "n1" / ("images" if number % 2 else "x.jpg")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (5, 3), 9).save(folder / f"{number}{ending}")
    _write_classes(tmp_path, ["n2.jpg"])
    for name in ("n1/a.gif", "n1/images/b.gif", "n2.jpg/c.HEIC", "n2.jpg/n2_boxes.txt", "n1/.hidden.jpg", "README"):
        (tmp_path / name).touch()
    dataset = ImageNetDataset(tmp_path, None)
    assert dataset.classes == ["n1", "n2.jpg"]
    assert dataset.labels.tolist() == [0] * len(endings) + [1]
    assert all(dataset[index]["image"].shape == (3, 3, 5) for index in range(len(endings)))
    counts = {".gif": 2, ".heic": 1, ".txt": 1, "no ending": 1}
    assert dataset.skipped == {f"file of another kind ({ending})": count for ending, count in counts.items()}
    (line,) = said
    assert "10 images; not read: 2 file of another kind (.gif), 1 file of another kind (.heic)" in line
    assert annotation_finder(tmp_path)(str(tmp_path / "n1/images/1.jpg")) == tmp_path / "n1" / "1.xml"
    shutil.rmtree(tmp_path / "n1")
    (tmp_path / "n2.jpg" / "0.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"no image .*there: 1 file of another kind \(\.heic\)"):
        ImageNetDataset(tmp_path, None)
