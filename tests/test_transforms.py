"""Decoding of every colour mode, broken files, and the transforms against torchvision's."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from last_vit.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EvalTransform,
    load_rgb,
    train_transform,
    verify_image,
)


@pytest.fixture
def photo():
    ramp = np.linspace(0, 255, 40 * 60 * 3).reshape(40, 60, 3).astype(np.uint8)
    return Image.fromarray(ramp)


def _palette_with_transparency(photo):
    image = photo.convert("P", palette=Image.Palette.ADAPTIVE)
    image.info["transparency"] = bytes(range(256))
    return image


@pytest.mark.parametrize(
    ("suffix", "convert"),
    [
        ("jpg", lambda image: image.convert("L")),
        ("jpg", lambda image: image.convert("CMYK")),
        ("png", lambda image: image.convert("P")),
        ("png", _palette_with_transparency),
        ("png", lambda image: image.convert("RGBA")),
        ("png", lambda image: image.convert("LA")),
        ("png", lambda image: image.convert("1")),
    ],
    ids=["grey", "cmyk", "palette", "palette-transparent", "alpha", "grey-alpha", "bilevel"],
)
def test_every_colour_mode_becomes_rgb(tmp_path, photo, suffix, convert):
    path = tmp_path / f"image.{suffix}"
    convert(photo).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = load_rgb(path)
    assert (image.mode, image.size) == ("RGB", (60, 40))
    assert verify_image(path) == (40, 60)
    assert EvalTransform(32, 32)(image).shape == (3, 32, 32)


def test_cmyk_keeps_its_colours(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=100)
    red, green, blue = load_rgb(tmp_path / "red.jpg").getpixel((8, 8))
    assert red > 240
    assert max(green, blue) < 15


def test_exif_orientation_leaves_the_pixel_frame_alone(tmp_path, photo):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees to show"
    photo.save(tmp_path / "turned.jpg", exif=exif)
    photo.save(tmp_path / "plain.jpg")
    turned, plain = load_rgb(tmp_path / "turned.jpg"), load_rgb(tmp_path / "plain.jpg")
    assert turned.size == (60, 40)
    assert np.array_equal(np.asarray(turned), np.asarray(plain))
    assert verify_image(tmp_path / "turned.jpg") == (40, 60)


@pytest.mark.parametrize("read", [load_rgb, verify_image])
def test_broken_files_are_named(tmp_path, photo, read):
    buffer = io.BytesIO()
    photo.resize((200, 200)).save(buffer, "JPEG")
    (tmp_path / "short.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    for name in ("short.jpg", "empty.jpg", "page.jpg"):
        with pytest.raises(ValueError, match=name):
            read(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "absent.jpg")
    with pytest.raises(IsADirectoryError):
        read(tmp_path)


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (500, 333), (20, 20)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_eval_transform_is_torchvisions(size, interpolation):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    reference = transforms.Compose(
        [
            transforms.Resize(48, interpolation=transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(40),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    assert torch.equal(EvalTransform(48, 40, interpolation=interpolation)(image), reference(image))


def test_train_transform_is_torchvisions(photo):
    reference = transforms.Compose(
        [
            transforms.RandomResizedCrop(32),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    for seed in range(5):
        torch.manual_seed(seed)
        ours = train_transform(32)(photo)
        torch.manual_seed(seed)
        assert torch.equal(ours, reference(photo))


def test_train_scale_bounds_the_crop():
    image = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8), (64, 1))).convert("RGB")
    crop = train_transform(64, mean=(0, 0, 0), std=(1, 1, 1), scale=(1.0, 1.0))
    spans = [float(view.max() - view.min()) * 255 for view in (crop(image) for _ in range(10))]
    assert max(spans) > 60  # a square crop of the whole area; other ratios do not fit and fall back to it


@pytest.mark.parametrize(
    "build",
    [
        lambda: EvalTransform(interpolation="nearest"),
        lambda: EvalTransform(resize=0),
        lambda: EvalTransform(crop=-1),
        lambda: train_transform(0),
        lambda: train_transform(scale=(0.5, 0.2)),
        lambda: train_transform(scale=(0.0, 1.0)),
        lambda: train_transform(interpolation="area"),
    ],
)
def test_wrong_arguments(build):
    with pytest.raises(ValueError, match="must be"):
        build()
