"""The command that writes synthetic sets: layouts, splits, class names; what they hold is tested with the readers."""

import pytest
from make_synthetic_set import main

from last_vit.data.synthetic import SyntheticObjects

FLAGS = ("--num-images", "4", "--image-size", "32", "--num-classes", "3", "--seed", "5")
FILES = {
    "imagenet": "train/n00000002",
    "coco": "train2017/000000000004.jpg",
    "voc": "VOC2012/ImageSets/Segmentation/train.txt",
}


@pytest.mark.parametrize("layout", FILES)
def test_both_splits_are_written(tmp_path, layout, capsys, refused):
    flags = ["--layout", layout, "--output", str(tmp_path / "set"), "--split", "train", "val", *FLAGS]
    main(flags)
    assert "wrote 4 val images of 3 classes" in capsys.readouterr().out
    for split in ("train", "val"):
        assert (tmp_path / "set" / FILES[layout].replace("train", split)).exists()
    names = (tmp_path / "set" / "class_names.txt").read_text().splitlines()
    assert names == SyntheticObjects(4, "val", 32, 3, 5).classes
    assert "holds files already" in refused(main, *flags)
