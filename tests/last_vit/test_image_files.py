"""Files of a data set: every colour mode, broken and damaged files, masks, listing and pairing by name."""

import io
import warnings
from pathlib import Path, PurePath

import numpy as np
import pytest
from PIL import Image

from last_vit.data import image_files
from last_vit.data.image_files import list_files, load_mask, load_pixels, load_rgb, pair_by_name, verify_image
from last_vit.data.transforms import TrainTransform

PHOTO = Image.fromarray(np.linspace(0, 255, 40 * 60 * 3).reshape(40, 60, 3).astype(np.uint8))
NOISE = np.random.default_rng(0).normal(0, 6, (171, 233, 3))
SCENE = Image.fromarray((np.cumsum(NOISE, axis=1) + 128).clip(0, 255).astype(np.uint8))  # edges and smooth parts
VALUES = np.array([[0, 1, 255], [7, 0, 1]], dtype=np.uint8)


def _jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def _outcome(read, path):
    """What a file gives: pixels, or the message of its error."""
    try:
        return np.asarray(read(path))
    except ValueError as error:
        return str(error)


def _palette_with_transparency(image):
    image = image.convert("P", palette=Image.Palette.ADAPTIVE)
    image.info["transparency"] = bytes(range(256))
    return image


@pytest.mark.parametrize("mode", ["jpg L", "jpg CMYK", "png P", "png transparent", "png RGBA", "png LA", "png 1"])
def test_every_colour_mode_becomes_rgb(tmp_path, mode):
    suffix, mode = mode.split()
    path = tmp_path / f"image.{suffix}"
    (_palette_with_transparency(PHOTO) if mode == "transparent" else PHOTO.convert(mode)).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = load_rgb(path)
    assert (image.mode, image.size) == ("RGB", (60, 40))
    assert verify_image(path) == (40, 60)
    assert np.array_equal(load_pixels(path), image)


def test_cmyk_keeps_its_colours(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=100)
    red, green, blue = load_rgb(tmp_path / "red.jpg").getpixel((8, 8))
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("file", ["grey.png", "grey.tif", "big_endian.tif", "grey.pgm"])
def test_sixteen_bit_grey_is_scaled(tmp_path, file):
    """40000 of 65535 is 156 of 255; a ramp keeps all its levels."""
    values = np.array([[0, 128, 129, 40000, 65535], range(0, 65536, 16383)], dtype=np.uint16)
    path = tmp_path / file
    if file == "grey.pgm":
        path.write_bytes(b"P5 5 2 65535 " + values.astype(">u2").tobytes())
    elif file == "big_endian.tif":
        Image.frombytes("I;16B", (5, 2), values.astype(">u2").tobytes()).save(path)
    else:
        Image.fromarray(values).save(path)
    for read in (load_rgb, load_pixels, TrainTransform.load):
        pixels = np.asarray(read(path))
        pixels = pixels.transpose(1, 2, 0) if pixels.shape[0] == 3 else pixels
        assert pixels[0].tolist() == [[level] * 3 for level in (0, 0, 1, 156, 255)]
        assert np.array_equal(pixels[..., 0], np.rint(values / 65535 * 255))
    Image.fromarray(np.array([[70000, 0]], dtype=np.int32)).save(tmp_path / "wide.tif")
    with pytest.raises(ValueError, match=r"wide\.tif.*from 0 to 70000, expected 16 bits"):
        load_rgb(tmp_path / "wide.tif")


def test_exif_orientation_leaves_the_pixel_frame_alone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees to show"
    PHOTO.save(tmp_path / "turned.jpg", exif=exif)
    PHOTO.save(tmp_path / "plain.jpg")
    assert verify_image(tmp_path / "turned.jpg") == (40, 60)
    for read in (load_rgb, load_pixels):
        assert np.array_equal(read(tmp_path / "turned.jpg"), read(tmp_path / "plain.jpg"))


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}], ids=str)
def test_pixels_are_pillows(tmp_path, options, monkeypatch):
    path = tmp_path / "image.jpg"
    path.write_bytes(_jpeg(SCENE, quality=90, **options))
    expected = np.array(load_rgb(path))
    assert np.array_equal(load_pixels(path), expected)
    monkeypatch.setattr(image_files, "simplejpeg", None)
    assert np.array_equal(load_pixels(path), expected)


def test_pillow_is_not_asked_for_a_plain_jpeg(tmp_path, monkeypatch):
    pytest.importorskip("simplejpeg")
    for name, image in {"colour": SCENE, "grey": SCENE.convert("L")}.items():
        path = tmp_path / f"{name}.jpg"
        path.write_bytes(_jpeg(image))
        expected = np.array(load_rgb(path))
        with monkeypatch.context() as patched:
            patched.setattr(image_files, "load_rgb", None)
            assert np.array_equal(load_pixels(path), expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_damage_has_pillows_outcome(tmp_path, mode):
    """Whatever a damaged file is, an error or an image: both readers say the same."""
    sound = _jpeg(SCENE.convert(mode).resize((53, 37)), restart_marker_blocks=3)
    rng = np.random.default_rng(0)
    damaged = [sound[:length] for length in rng.integers(len(sound), size=40)] + [sound[:-1], sound + b"tail"]
    for _ in range(80):
        place, value = rng.integers(len(sound)), rng.integers(256)
        damaged.append(sound[:place] + bytes([value]) + sound[place + 1 :])
    path = tmp_path / "image.jpg"
    images = 0
    for content in damaged:
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that the damage made strange
            expected, found = _outcome(load_rgb, path), _outcome(load_pixels, path)
        assert type(expected) is type(found)
        assert np.array_equal(expected, found)
        images += not isinstance(expected, str)
    assert 10 < images < len(damaged) - 10


def test_pillows_limit_on_size_holds(tmp_path, monkeypatch):
    (tmp_path / "bomb.jpg").write_bytes(_jpeg(SCENE))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"bomb\.jpg cannot be read"):
        load_pixels(tmp_path / "bomb.jpg")


@pytest.mark.parametrize("read", [load_rgb, load_pixels, verify_image])
def test_broken_images_are_named(tmp_path, read):
    content = {"short.jpg": _jpeg(SCENE)[:3000], "empty.jpg": b"", "page.jpg": b"<html>404</html>"}
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=rf"image .*{name} cannot be read: .*restore it from.*skip_broken"):
            read(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "absent.jpg")
    with pytest.raises(IsADirectoryError):
        read(tmp_path)


@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_png_masks_give_their_indices(tmp_path, mode):
    image = Image.fromarray(VALUES > 0 if mode == "1" else VALUES)
    if mode == "P":
        image.putpalette([3 * i % 256 for i in range(768)])
    image.save(tmp_path / "1.PNG")
    loaded = load_mask(tmp_path / "1.PNG")
    assert loaded.dtype == (bool if mode == "1" else np.uint8)
    assert np.array_equal(loaded, np.asarray(image))


@pytest.mark.parametrize("values", [VALUES, VALUES > 0, VALUES.astype(np.int64) * 300, VALUES[None]])
def test_npy_masks_give_their_array(tmp_path, values):
    np.save(tmp_path / "1.npy", values)
    loaded = load_mask(tmp_path / "1.npy")
    assert loaded.dtype == values.dtype
    assert np.array_equal(loaded, values.reshape(2, 3))


def test_what_is_no_mask_is_refused(tmp_path):
    for mode in ("RGB", "RGBA", "LA", "I;16"):
        image = Image.fromarray(VALUES.astype(np.uint16)) if mode == "I;16" else Image.fromarray(VALUES).convert(mode)
        image.save(tmp_path / "1.png")
        with pytest.raises(ValueError, match=rf"1\.png.*mode is {mode}.*one channel of indices"):
            load_mask(tmp_path / "1.png")
    for values in (VALUES / 255, np.stack([VALUES] * 3), VALUES[0]):
        np.save(tmp_path / "1.npy", values)
        with pytest.raises(ValueError, match=r"1\.npy.*expected booleans or integers \[H, W\]"):
            load_mask(tmp_path / "1.npy")
    with pytest.raises(ValueError, match=r"1\.tif must end in \.png or \.npy"):
        load_mask(tmp_path / "1.tif")


def test_pickled_and_broken_masks_are_refused(tmp_path):
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("not an array")
    (tmp_path / "empty.npy").touch()
    (tmp_path / "text.png").write_text("not an image")
    Image.fromarray(np.arange(10000, dtype=np.uint8).reshape(100, 100)).save(tmp_path / "cut.png")
    with open(tmp_path / "cut.png", "r+b") as file:
        file.truncate(200)
    for name in ("pickle.npy", "text.npy", "empty.npy", "text.png", "cut.png"):
        with pytest.raises(ValueError, match=f"mask .*{name} cannot be read"):
            load_mask(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load_mask(tmp_path / "absent.png")


def _pair(images, annotations, with_ending=False):
    return pair_by_name([PurePath(p) for p in images], [PurePath(p) for p in annotations], with_ending)


def test_pairs_by_name_then_by_folder():
    assert _pair(["a/1.jpg", "b/2.png", "3.jpg"], ["x/y/2.xml", "1.xml", "4.xml"]) == [1, 0, None]
    assert _pair(["1.v2.jpg"], ["1.v2.xml"]) == [0]
    assert _pair(["1.jpg", "2.jpg"], ["1.png", "2.jpg"], with_ending=True) == [None, 1]
    assert _pair(["bear/0.jpg", "cat/0.jpg", "dog/0.jpg"], ["cat/0.png", "dog/0.png", "fox/0.png"]) == [None, 0, 1]
    assert _pair(["train2017/7.jpg", "val2017/7.jpg"], ["val2017/7.jpg"], with_ending=True) == [None, 0]
    assert _pair(["7.jpg"], ["train2017/7.jpg", "8.jpg"], with_ending=True) == [0]


@pytest.mark.parametrize(
    ("images", "annotations", "match"),
    [
        (["1.jpg", "1.png"], ["1.xml"], r"annotation 1\.xml fits images 1\.jpg and 1\.png: names must be unique"),
        (["a/1.jpg", "b/1.jpg"], ["1.xml"], r"annotation 1\.xml fits images a/1\.jpg and b/1\.jpg"),
        (["1.jpg"], ["1.npy", "1.png"], r"image 1\.jpg fits annotations 1\.npy and 1\.png"),
        (["1.jpg"], ["a/1.xml", "b/1.xml"], r"image 1\.jpg fits annotations a/1\.xml and b/1\.xml"),
    ],
)
def test_ambiguous_names_are_refused(images, annotations, match):
    with pytest.raises(ValueError, match=match):
        _pair(images, annotations)


def test_listing_is_deep_sorted_and_visible_only(tmp_path):
    images = tmp_path / "images"
    for name in ("b.JPG", "a/c.jpg", "a/.hidden.jpg", ".cache/d.jpg", "a/e.txt", "../elsewhere/f.jpg"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).touch()
    (images / "linked").symlink_to(tmp_path / "elsewhere")
    found = [path.relative_to(images) for path in list_files(images, (".jpg",))]
    assert found == [Path("a/c.jpg"), Path("b.JPG"), Path("linked/f.jpg")]
