"""tools/eval_{corloc_*,coarse_seg_voc12,knn_imagenet}.sh: what they refuse, and the command that they become."""

import os
import subprocess

import pytest
from frozen_parts import REPO


def run(name, *arguments):
    """A script with `echo` in place of python."""
    return subprocess.run(
        ["bash", str(REPO / "tools" / f"eval_{name}.sh"), *map(str, arguments)],
        env={"PATH": os.environ["PATH"], "RUN": "echo"},
        capture_output=True,
        text=True,
    )


def write_lines(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"train2014/{i}.jpg\n" for i in range(number)))


@pytest.mark.parametrize(
    ("name", "listing", "number", "command"),
    [
        (
            "corloc_voc07",
            "Main/trainval",
            5011,
            "--voc-split trainval --dataset-name VOC07 trainval --method patch-score",
        ),
        (
            "corloc_voc12",
            "Main/trainval",
            11540,
            "--voc-split trainval --dataset-name VOC12 trainval --method patch-score",
        ),
        ("coarse_seg_voc12", "Segmentation/val", 1449, "--voc-split val --dataset-name VOC12 --rule score attention"),
    ],
)
def test_voc(tmp_path, name, listing, number, command):
    voc = tmp_path / "all images"
    for arguments in ([], ["--model", "m"], [voc]):
        done = run(name, *arguments)
        assert (done.returncode, f"eval_{name}.sh: error" in done.stderr) == (2, True)
    write_lines(voc / f"ImageSets/{listing}.txt", 7)
    assert f"names 7 images, VOC 20{name[-2:]} " in run(name, voc).stderr
    write_lines(voc / f"ImageSets/{listing}.txt", number)
    done = run(name, voc, "--model", "a=b c", "--table")
    assert done.returncode == 0, done.stderr
    assert f"--voc-root {voc} {command}" in done.stdout
    assert done.stdout.endswith("--model a=b c --table\n")


def test_coco(tmp_path):
    (tmp_path / "train2014").mkdir()
    annotations, listing = tmp_path / "annotations/instances_train2014.json", tmp_path / "coco_20k_filenames.txt"
    write_lines(annotations, 1)
    write_lines(listing, 7)
    assert "names 7 images" in run("corloc_coco20k", tmp_path).stderr
    write_lines(listing, 19817)
    done = run("corloc_coco20k", tmp_path, "--model", "m")
    assert done.returncode == 0, done.stderr
    assert "--dataset-name COCO20k" in done.stdout
    assert done.stdout.endswith("--model m\n")
    for missing in (listing, annotations):
        missing.unlink()
        done = run("corloc_coco20k", tmp_path)
        assert (done.returncode, missing.name in done.stderr) == (2, True)
    assert run("corloc_coco20k").returncode == 2


@pytest.mark.parametrize("layout", ["", "ILSVRC/Data/CLS-LOC"])
def test_knn_on_imagenet(tmp_path, layout):
    root, weights = tmp_path / "image net", tmp_path / "weights.pth"
    for arguments in ([], [root], [root, weights], ["--arch", "vit_base"]):
        assert run("knn_imagenet", *arguments).returncode == 2
    weights.touch()
    assert "no train/ in" in run("knn_imagenet", root, weights).stderr
    for label in range(1000):
        (root / layout / "train" / f"n{label}").mkdir(parents=True)
    done = run("knn_imagenet", root, weights, "--arch", "vit_base")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(
        f"--data_path {root} --dataset_name ImageNet-1k --pretrained_weights {weights} --arch vit_base\n"
    )
    (root / layout / "train" / "n5").rmdir()
    assert "has 999 classes" in run("knn_imagenet", root, weights).stderr
