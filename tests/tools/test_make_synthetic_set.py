"""The command that writes synthetic sets: each layout is read back by its reader."""

import numpy as np
import pytest
from make_synthetic_set import main
from seg_sets import SegmentationSet

from last_vit.data.synthetic import SyntheticObjects

FLAGS = ("--num-images", "4", "--image-size", "32", "--num-classes", "3", "--seed", "5")


def test_voc_is_read_as_a_segmentation_set(tmp_path, capsys):
    main(["--layout", "voc", "--output", str(tmp_path / "voc"), *FLAGS])
    assert "wrote 4 val images of 3 classes" in capsys.readouterr().out
    names = (tmp_path / "voc" / "class_names.txt").read_text().splitlines()
    samples = SyntheticObjects(4, "val", 32, 3, 5)
    assert names == samples.classes
    found = SegmentationSet(
        "custom", tmp_path / "voc" / "VOC2012", class_names=[(name,) for name in names], zero_label="ignored"
    )
    for index in range(4):
        mask = samples.render(index).mask.numpy()
        assert np.array_equal(found.label(index), np.where(mask, samples.labels[index], 255))


@pytest.mark.parametrize(("layout", "file"), [("imagenet", "train/n00000002"), ("coco", "train2017/000000000004.jpg")])
def test_both_splits_are_written(tmp_path, layout, file):
    main(["--layout", layout, "--output", str(tmp_path / "set"), "--split", "train", "val", *FLAGS])
    assert (tmp_path / "set" / file).exists()
    assert (tmp_path / "set" / file.replace("train", "val")).exists()
