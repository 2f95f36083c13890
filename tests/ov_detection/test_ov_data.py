"""Data sets, loaders and the catalogue: order, resuming, workers, shares of processes, and names taken."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from ov_classes import read_ov_classes
from ov_data import OvImageSet, build_ov_test_loader, build_ov_train_loader, check_same_classes, register_ov_set
from ov_parts import all_65, coco_categories, random_content, write_images, write_json
from ov_synthetic import synthetic_ov_set

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def files(tmp_path):
    content = random_content(coco_categories(all_65()), num_images=7)
    return write_json(tmp_path / "x.json", content), write_images(tmp_path / "images", content)


def batches(dataset, number, workers=0, start=0):
    loader = build_ov_train_loader(dataset, batch_size=2, num_workers=workers, seed=5)
    loader.batch_sampler.start_iteration = start
    iterator = iter(loader)
    return [next(iterator) for _ in range(number)]


def same(first, second):
    return all(
        torch.equal(a["image"], b["image"])
        and torch.equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)
        for left, right in zip(first, second, strict=True)
        for a, b in zip(left, right, strict=True)
    )


def test_training_order_resumes_with_any_number_of_workers(files):
    dataset = OvImageSet(*files, size=32, train=True)
    whole = batches(dataset, 8)
    assert all(isinstance(batch, list) and len(batch) == 2 for batch in whole)
    assert same(whole, batches(dataset, 8, workers=2))
    assert same(whole[5:], batches(dataset, 3, start=5))
    first_epoch = [sample["image_id"] for batch in whole for sample in batch][: len(dataset)]
    assert len(set(first_epoch)) == len(dataset)


def test_test_loader_sees_every_image_once(files, monkeypatch):
    dataset = OvImageSet(*files, size=32, train=False)
    assert [sample["image_id"] for batch in build_ov_test_loader(dataset, 3, 0) for sample in batch] == list(
        range(11, 18)
    )
    seen = []
    for process in range(3):
        monkeypatch.setattr("last_vit.data.loaders.world_size", lambda: 3)
        monkeypatch.setattr("last_vit.data.loaders.rank", lambda process=process: process)
        seen += [sample["image_id"] for batch in build_ov_test_loader(dataset, 2, 0) for sample in batch]
    assert sorted(seen) == list(range(11, 18))


def test_classes_and_name(files):
    dataset = OvImageSet(*files, size=32, train=True, novel=["cat"])
    assert dataset.classes.split.novel.sum() == 1
    assert repr(dataset) == f"OvImageSet(x.json, {len(dataset)} images, 65 classes)"


def test_labels_must_mean_the_same():
    first = read_ov_classes([{"id": 1, "name": "cat"}, {"id": 2, "name": "person"}])
    check_same_classes(first, read_ov_classes([{"id": 7, "name": "person"}, {"id": 3, "name": "cat"}]))
    for other, novel in (
        ([{"id": 1, "name": "person"}, {"id": 2, "name": "cat"}], None),
        ([{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}], None),
        ([{"id": 1, "name": "cat"}, {"id": 2, "name": "person"}], ()),
    ):
        with pytest.raises(ValueError, match="labels would not mean the same: the sets have 2 and 2 classes"):
            check_same_classes(first, read_ov_classes(other, novel))


@pytest.fixture
def catalogue():
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_catalogue(files, catalogue):
    for _ in range(2):  # the same set may come again
        register_ov_set("ov_test_set", *files, train=False)
    assert MetadataCatalog.get("ov_test_set").json_file == str(files[0])
    assert len(DatasetCatalog.get("ov_test_set")) == 7
    metadata = MetadataCatalog.get("ov_test_set")
    assert metadata.thing_classes == all_65()
    assert (len(metadata.base_classes), len(metadata.novel_classes)) == (48, 17)
    assert metadata.thing_dataset_id_to_contiguous_id[4] == 1
    with pytest.raises(ValueError, match="another set of the name 'ov_test_set'"):
        register_ov_set("ov_test_set", *files, train=True)


def test_importing_registers_nothing():
    code = (
        "import sys; sys.path[:0] = ['ov_detection']\n"
        "from detectron2.data import DatasetCatalog\n"
        "before = set(DatasetCatalog.list())\n"
        "import ov_data, ov_evaluator\n"
        "sys.exit(set(DatasetCatalog.list()) != before)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True, timeout=120)


def test_a_few_images_as_they_are_tested(files):
    """For learning a few images by heart: the same pixels every time, and the ids of the images that are left."""
    tested = OvImageSet(*files, size=32, train=False, max_images=3)
    trained = OvImageSet(*files, size=32, train=True, augment=False, max_images=3)
    assert len(tested) == len(trained) == 3
    every = OvImageSet(*files, size=32, train=False)
    assert tested.image_ids == tuple(every[i]["image_id"] for i in range(3)) == every.image_ids[:3]
    for index, number in enumerate(trained.image_ids):
        sample = trained[index]
        assert sample["image_id"] == number
        assert torch.equal(sample["image"], every[every.image_ids.index(number)]["image"])
        assert len(sample["instances"]) > 0
    with pytest.raises(ValueError, match="max_images must be at least 1"):
        OvImageSet(*files, size=32, train=True, max_images=0)


@pytest.mark.parametrize("augment", [True, False])
def test_synthetic_images_are_augmented_where_asked(tmp_path, augment):
    images = synthetic_ov_set(tmp_path, "train", 4, 64, 5, 2, masks=False, augment=augment)
    first, again = (images[0]["image"] for _ in range(2))
    assert torch.equal(first, again) != augment
