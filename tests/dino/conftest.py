"""Small data sets that the tests of the evaluations share, written once; none of them is changed in place."""

import shutil

import pytest
from frozen_parts import MODEL, write_colours, write_run

from last_vit.data.synthetic import SyntheticObjects, write_coco, write_imagenet, write_voc


@pytest.fixture(scope="session")
def synthetic_sets(tmp_path_factory):
    """Seven images of 40 pixels with one object each of three classes, as voc/, coco/ and imagenet/."""
    root = tmp_path_factory.mktemp("sets")
    samples = SyntheticObjects(7, "val", image_size=40, num_classes=3)
    for write in (write_voc, write_coco, write_imagenet):
        write(samples, root / write.__name__.removeprefix("write_"))
    return root


@pytest.fixture(scope="session")
def colours(tmp_path_factory):
    """Six training images and three for validation of each of three colours."""
    return write_colours(tmp_path_factory.mktemp("colours"), train=6, val=3)


@pytest.fixture(scope="session")
def trained_vit(tmp_path_factory):
    """A checkpoint of main_dino.py."""
    return write_run(tmp_path_factory.mktemp("vit") / "checkpoint.pth")


@pytest.fixture
def flags(colours, trained_vit, tmp_path, monkeypatch):
    """Of eval_knn.py and eval_linear.py in an empty folder, the checkpoint in it; any may be given again at the end."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(trained_vit, "checkpoint.pth")
    given = [*MODEL, "--pretrained_weights", "checkpoint.pth", "--data_path", str(colours)]
    return [*given, "--num_workers", "0", "--device", "cpu"]
