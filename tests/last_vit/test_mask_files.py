"""Mask files: indices as they stand, and everything that is not one index per pixel refused by name."""

import numpy as np
import pytest
from PIL import Image

from last_vit.data.image_files import load_mask

VALUES = np.array([[0, 1, 255], [7, 0, 1]], dtype=np.uint8)


def _save_png(path, values, mode=None):
    image = Image.fromarray(values)
    if mode == "P":
        image.putpalette([3 * i % 256 for i in range(768)])
    elif mode is not None:
        image = image.convert(mode)
    image.save(path)
    return path


@pytest.mark.parametrize("mode", ["L", "P"])
def test_png_gives_its_indices(tmp_path, mode):
    loaded = load_mask(_save_png(tmp_path / "1.PNG", VALUES, mode))
    assert loaded.dtype == np.uint8
    assert np.array_equal(loaded, VALUES)


def test_one_bit_png_is_boolean(tmp_path):
    Image.fromarray(VALUES > 0).save(tmp_path / "1.png")
    loaded = load_mask(tmp_path / "1.png")
    assert loaded.dtype == bool
    assert np.array_equal(loaded, VALUES > 0)


@pytest.mark.parametrize("values", [VALUES, VALUES > 0, VALUES.astype(np.int64) * 300, VALUES[None]])
def test_npy_gives_its_array(tmp_path, values):
    np.save(tmp_path / "1.npy", values)
    loaded = load_mask(tmp_path / "1.npy")
    assert loaded.dtype == values.dtype
    assert np.array_equal(loaded, values.reshape(2, 3))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "I;16"])
def test_colours_are_refused(tmp_path, mode):
    values = VALUES.astype(np.uint16) if mode == "I;16" else VALUES
    path = _save_png(tmp_path / "1.png", values, None if mode == "I;16" else mode)
    with pytest.raises(ValueError, match=rf"1\.png.*mode is {mode}.*one channel of indices"):
        load_mask(path)


@pytest.mark.parametrize("values", [VALUES / 255, np.stack([VALUES] * 3), VALUES[0]])
def test_arrays_that_are_no_mask_are_refused(tmp_path, values):
    np.save(tmp_path / "1.npy", values)
    with pytest.raises(ValueError, match=r"1\.npy.*expected booleans or integers \[H, W\]"):
        load_mask(tmp_path / "1.npy")


def test_pickles_and_broken_files_are_refused(tmp_path):
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("not an array")
    (tmp_path / "empty.npy").touch()
    (tmp_path / "text.png").write_text("not an image")
    _save_png(tmp_path / "cut.png", np.arange(10000, dtype=np.uint8).reshape(100, 100))
    with open(tmp_path / "cut.png", "r+b") as file:
        file.truncate(200)
    for name in ("pickle.npy", "text.npy", "empty.npy", "text.png", "cut.png"):
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            load_mask(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load_mask(tmp_path / "absent.png")
    with pytest.raises(ValueError, match=r"1\.tif must end in \.png or \.npy"):
        load_mask(tmp_path / "1.tif")
