"""visualize_attention.py: the files and their pixels, masks of a share, folders, errors."""

import shutil
from pathlib import Path

import attention_pictures
import numpy as np
import pytest
import torch
import visualize_attention as script
from matplotlib import colormaps
from PIL import Image
from torchvision.transforms import functional

MODEL = ("--arch", "vit_mini", "--pretrained_weights", "checkpoint.pth", "--device", "cpu")  # patch 8, the default


def photograph(path):
    noise = np.random.default_rng(0).integers(0, 256, (10, 14, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((70, 50)).save(path)


@pytest.fixture(autouse=True)
def here(trained_vit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(trained_vit, "checkpoint.pth")
    photograph(tmp_path / "image.png")


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def test_files_of_one_image_and_of_a_folder(capsys):
    flags = ["--image_path", "image.png", "--image_size", "50", "69", "--threshold", "0.6", "--output_dir", "out"]
    script.main([*MODEL, *flags])
    names = {path.name for path in Path("out").iterdir()}
    assert names == {"img.png"} | {f"{kind}head{j}.png" for kind in ("attn-", "mask_th0.6_") for j in range(3)}
    assert "written 7 pictures to out" in capsys.readouterr().out
    resized = functional.resize(Image.open("image.png").convert("RGB"), [50, 69])
    assert np.array_equal(pixels("out/img.png"), np.asarray(resized)[:48, :64])  # cut to whole patches
    assert {pixels(Path("out") / name).shape for name in names} == {(48, 64, 3)}
    Path("images").mkdir()
    for name in ("a.png", "b.jpg", "same.jpg", "same.png"):
        photograph(Path("images") / name)
    Path("images/notes.txt").touch()
    script.main([*MODEL, "--image_path", "images", "--image_size", "32", "--output_dir", "more"])
    assert {path.name for path in Path("more").iterdir()} == {"a", "b", "same.jpg", "same.png"}
    assert pixels("more/a/img.png").shape == (32, 40, 3)  # one number: the shorter side, 50 -> 32, 70 -> 44 cut to 40
    assert len(list(Path("more/b").iterdir())) == 1 + 3


def test_pictures_show_the_attention():
    """Patch by patch: the value in its head's range as a colour; the mask is the fewest patches with the share."""
    attention = torch.tensor([[[0.1, 0.4, 0.1], [0.2, 0.05, 0.15]], [[0.3, 0.3, 0.3], [0.05, 0.03, 0.02]]])
    image = np.full((16, 24, 3), 100, dtype=np.uint8)
    written = attention_pictures.draw(Path("out"), image, attention, 0.7)
    assert written[0] == Path("out/img.png")
    for head, values in enumerate(attention.numpy()):
        scaled = (values - values.min()) / (values.max() - values.min())
        expected = colormaps["inferno"](scaled, bytes=True)[:, :, :3].repeat(8, 0).repeat(8, 1)
        assert np.array_equal(pixels(f"out/attn-head{head}.png"), expected)
    masks = [np.any(pixels(f"out/mask_th0.7_head{head}.png") != 100, axis=2)[::8, ::8] for head in (0, 1)]
    # 0.4 + 0.2 hold 0.6, too little, with 0.15 it is 0.75; of 0.3 it takes three
    assert masks[0].tolist() == [[False, True, False], [True, False, True]]
    assert masks[1].tolist() == [[True, True, True], [False, False, False]]


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--image_path", "nowhere.png"], "nowhere.png"),
        (["--image_path", "empty"], "no image in --image_path empty"),
        (["--image_path", "broken.png"], "broken.png"),
        (["--threshold", "0"], "--threshold is a share"),
        (["--image_size", "1", "2", "3"], "one number or two"),
        (["--image_size", "7", "64"], "less than a patch of 8"),
        (["--pretrained_weights", "missing.pth"], "missing.pth"),
        (["--arch", "resnet18", "--pretrained_weights", "random"], "cannot be read"),
        (["--output_dir", "image.png"], "image.png"),
    ],
)
def test_one_line_for_every_mistake(refused, flags, match):
    Path("empty").mkdir()
    Path("broken.png").write_bytes(Path("image.png").read_bytes()[:300])
    error = refused(script.main, *MODEL, "--image_path", "image.png", "--image_size", "32", *flags)
    assert error.startswith("visualize_attention.py: error: ")
    assert match in error
