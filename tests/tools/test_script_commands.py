"""tools/eval_*.sh of dino/ and clip/: what they refuse, and the command that they become."""

from pathlib import Path

import pytest
from script_parts import TOOLS, run_script
from seg_layouts import find_split
from seg_settings import find_setting

from last_vit.names import imagenet_synsets

SEGMENTATION = {path.stem.removeprefix("eval_seg_"): path for path in sorted(TOOLS.glob("eval_seg_*.sh"))}


def run(name, *arguments):
    """The command that a script becomes, or why not."""
    done = run_script(f"eval_{name}", *arguments)
    is_refused = f"eval_{name}.sh: error: " in done.stderr
    assert done.returncode == 2 * is_refused, done.stderr
    return done.stderr if is_refused else done.stdout


def write_lines(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"train2014/{i}.jpg\n" for i in range(number)))


@pytest.mark.parametrize(
    ("name", "listing", "number", "command"),
    [
        ("corloc_voc07", "Main/trainval", 5011, "trainval --dataset-name VOC07 trainval --method patch-score"),
        ("corloc_voc12", "Main/trainval", 11540, "trainval --dataset-name VOC12 trainval --method patch-score"),
        ("coarse_seg_voc12", "Segmentation/val", 1449, "val --dataset-name VOC12 --rule score attention"),
    ],
)
def test_voc(tmp_path, name, listing, number, command):
    voc = tmp_path / "all images"
    for arguments in ([], ["--model", "m"], [voc]):
        assert "error" in run(name, *arguments)
    write_lines(voc / f"ImageSets/{listing}.txt", 7)
    assert f"names 7 images, VOC 20{name[-2:]} " in run(name, voc)
    write_lines(voc / f"ImageSets/{listing}.txt", number)
    found = run(name, voc, "--model", "a=b c", "--table")
    assert f"--voc-root {voc} --voc-split {command}" in found
    assert found.endswith("--model a=b c --table\n")


def test_coco(tmp_path):
    (tmp_path / "train2014").mkdir()
    annotations, listing = tmp_path / "annotations/instances_train2014.json", tmp_path / "coco_20k_filenames.txt"
    write_lines(annotations, 1)
    write_lines(listing, 7)
    assert "names 7 images" in run("corloc_coco20k", tmp_path)
    write_lines(listing, 19817)
    found = run("corloc_coco20k", tmp_path, "--model", "m")
    assert "--dataset-name COCO20k" in found
    assert found.endswith("--model m\n")
    for missing in (listing, annotations):
        missing.unlink()
        assert f"{missing.name}: the head of this script" in run("corloc_coco20k", tmp_path)


@pytest.mark.parametrize("layout", ["", "ILSVRC/Data/CLS-LOC"])
def test_knn_on_imagenet(tmp_path, layout):
    root, weights = tmp_path / "image net", tmp_path / "weights.pth"
    for arguments in ([], [root], [root, weights], ["--arch", "vit_base"]):
        assert "error" in run("knn_imagenet", *arguments)
    weights.touch()
    assert "no train/ in" in run("knn_imagenet", root, weights)
    for label in range(1000):
        (root / layout / "train" / f"n{label}").mkdir(parents=True)
    found = run("knn_imagenet", root, weights, "--arch", "vit_base")
    assert found.endswith(
        f"--data_path {root} --dataset_name ImageNet-1k --pretrained_weights {weights} --arch vit_base\n"
    )
    (root / layout / "train" / "n5").rmdir()
    assert "has 999 classes" in run("knn_imagenet", root, weights)


def test_zero_shot_on_imagenet(tmp_path, monkeypatch):
    """Left-out weights are named; a --model of one's own is enough; another set than ImageNet-1k is refused."""
    monkeypatch.chdir(tmp_path)
    name, own = "zero_shot_imagenet", ["--model", "A=open_clip:clip_tiny.json@clip_tiny.pt"]
    assert "no folder nowhere" in run(name, "nowhere", *own)
    assert "error" in run(name, *own)
    for place, wnid in enumerate(imagenet_synsets()):
        (Path("imagenet/val") / wnid).mkdir(parents=True)
        if place == 6:
            assert "has 7 classes, ImageNet-1k has 1000" in run(name, "imagenet", *own)
    nothing = run_script(f"eval_{name}", "imagenet")
    assert (nothing.returncode, nothing.stdout.count("left out: weights/")) == (1, 10)
    assert "no weights in weights and no --model" in nothing.stderr
    command = "clip/eval_zero_shot_cls.py --imagenet-root imagenet --dataset-name ImageNet-1k --model "
    assert run(name, "imagenet", *own).endswith(f"{command}{own[1]}\n")
    Path("weights").mkdir()
    Path("weights/b16_400m.pt").touch()
    found = "MetaCLIP ViT-B/16, 400M=open_clip:ViT-B-16-quickgelu@weights/b16_400m.pt"
    assert run(name, "imagenet").endswith(f"{command}{found}\n")


@pytest.mark.parametrize("name", SEGMENTATION)
def test_segmentation(tmp_path, name):
    for arguments in ([], ["--model", "m"], [tmp_path / "nowhere"]):
        assert "error" in run(f"seg_{name}", *arguments)
    folder = tmp_path / "with blank"
    folder.mkdir()
    found = run(f"seg_{name}", folder, "--model", "a=b c", "--table")
    words = found.split()
    protocol = words[words.index("--protocol") + 1]
    assert f"--dataset {name} --root {folder} --protocol {protocol} " in found
    assert found.endswith("--model a=b c --table\n")
    assert f"{find_split(name, 'val')[1]:,} images" in SEGMENTATION[name].read_text()
    # the paper's image size: COCO-Stuff at SCLIP's 448 pixels is not what its number is compared with
    assert find_setting(name, protocol).short_side == (560 if name == "cityscapes" else 336)
