"""convert_cityscapes.py: labelIds by table, polygons as the official drawing order has them."""

import json

import convert_cityscapes
import numpy as np
import pytest
from seg_parts import HW, make_cityscapes, read

SUFFIX = "_gtFine_labelTrainIds.png"


def square(label, x1, y1, x2, y2, **more):
    """A polygon whose corners are its last pixels, as Pillow draws them."""
    return {"label": label, "polygon": [[x1, y1], [x2, y1], [x2, y2], [x1, y2]], **more}


def write_polygons(root, objects, name="ulm/ulm_000000_000019", split="val"):
    path = root / "gtFine" / split / f"{name}_gtFine_polygons.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"imgHeight": HW[0], "imgWidth": HW[1], "objects": objects}))
    return path


def run(*arguments):
    convert_cityscapes.main([str(argument) for argument in (*arguments, "--any-count", "--num-workers", 1)])


def test_label_ids(tmp_path, capsys):
    root = make_cityscapes(tmp_path / "in", {"ulm/a": [7, 8, 9, 33], "bonn/b": [0, 26]})
    run("--root", root, "--output", tmp_path / "out")
    folder = tmp_path / "out/gtFine/val"
    assert read(folder / f"ulm/a{SUFFIX}")[0].flatten()[:5].tolist() == [0, 1, 255, 18, 18]
    assert read(folder / f"bonn/b{SUFFIX}")[0].flatten()[:2].tolist() == [255, 13]
    assert not list(root.rglob(f"*{SUFFIX}"))
    assert "cityscapes val: 2 files found (the official set has 500), 2 converted: 2 now" in capsys.readouterr().out
    run("--root", root, "--beside")
    assert len(list((root / "gtFine/val").glob(f"*/*{SUFFIX}"))) == 2
    for flags, message in (
        (("--output", root), "is the folder of the source files"),
        (("--beside", "--source", "polygons"), "no *_gtFine_polygons.json below"),
    ):
        with pytest.raises(SystemExit, match="2"):
            run("--root", root, *flags)
        assert message in capsys.readouterr().err


def test_polygons_in_their_order(tmp_path):
    objects = [
        square("road", 0, 0, 5, 3),
        square("cargroup", 0, 1, 2, 3),
        square("license plate", 1, 2, 1, 2),
        square("license plategroup", 1, 2, 1, 2),
        square("caravan", 2, 2, 4, 3),
        square("sky", 0, 0, 5, 3, deleted=1),
        square("polegroup", 5, 0, 5, 0),
        square("persongroup", 5, 1, 5, 1, deleted=0),
    ]
    write_polygons(tmp_path, objects)
    run("--root", tmp_path, "--beside", "--source", "polygons")
    expected = np.zeros(HW, dtype=np.uint8)
    expected[1:4, 0:3] = 13
    expected[2:4, 2:5] = 255
    expected[0, 5] = 255
    expected[1, 5] = 11
    assert np.array_equal(read(tmp_path / f"gtFine/val/ulm/ulm_000000_000019{SUFFIX}")[0], expected)
    assert (convert_cityscapes.draw_polygons(write_polygons(tmp_path, [])) == 255).all()  # what nothing covers


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"imgHeight": 4}', "has no imgWidth; expected Cityscapes' polygons"),
        ("[]", "polygons.json: "),
        ("no JSON", "polygons.json: "),
        (json.dumps({"imgHeight": 4, "imgWidth": 6, "objects": [square("unicorn", 0, 0, 1, 1)]}), "label 'unicorn' is"),
        (
            json.dumps({"imgHeight": 4, "imgWidth": 6, "objects": [{"label": "car", "polygon": [[0, 0]]}]}),
            "has 1 points",
        ),
    ],
)
def test_malformed_polygons(content, message, tmp_path, capsys):
    write_polygons(tmp_path, []).write_text(content)
    with pytest.raises(SystemExit, match="2"):
        run("--root", tmp_path, "--beside", "--source", "polygons")
    assert message in capsys.readouterr().err.splitlines()[-1]
