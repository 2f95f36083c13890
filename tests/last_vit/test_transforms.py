"""Decoding of every colour mode, broken files, and the transforms against torchvision's."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from last_vit.data import image_files
from last_vit.data.image_files import load_pixels, load_rgb, verify_image
from last_vit.data.imagenet import ImageNetDataset
from last_vit.data.transforms import IMAGENET_MEAN, IMAGENET_STD, EvalTransform, train_transform


@pytest.fixture
def photo():
    ramp = np.linspace(0, 255, 40 * 60 * 3).reshape(40, 60, 3).astype(np.uint8)
    return Image.fromarray(ramp)


@pytest.fixture
def scene():
    """A picture with edges and smooth parts, as JPEG meets them."""
    noise = np.random.default_rng(0).normal(0, 6, (171, 233, 3))
    return Image.fromarray((np.cumsum(noise, axis=1) + 128).clip(0, 255).astype(np.uint8))


def as_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def outcome(read, path):
    """What a file gives: pixels, or the message of its error."""
    try:
        image = read(path)
    except ValueError as error:
        return str(error)
    return as_tensor(image) if isinstance(image, Image.Image) else image


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
    assert torch.equal(load_pixels(path), as_tensor(image))
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


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}], ids=str)
@pytest.mark.parametrize("decoder", ["simplejpeg", None], ids=str)
def test_pixels_are_pillows(tmp_path, scene, options, decoder, monkeypatch):
    path = tmp_path / "image.jpg"
    path.write_bytes(jpeg(scene, quality=90, **options))
    if decoder is None:
        monkeypatch.setattr(image_files, "simplejpeg", None)
    pixels = load_pixels(path)
    assert torch.equal(pixels, as_tensor(load_rgb(path)))
    assert pixels.permute(1, 2, 0).is_contiguous()


def test_pillow_is_not_asked_for_a_plain_jpeg(tmp_path, scene, monkeypatch):
    pytest.importorskip("simplejpeg")
    for name, image in {"colour": scene, "grey": scene.convert("L")}.items():
        path = tmp_path / f"{name}.jpg"
        path.write_bytes(jpeg(image))
        expected = as_tensor(load_rgb(path))
        with monkeypatch.context() as patched:
            patched.setattr(image_files, "load_rgb", None)
            assert torch.equal(load_pixels(path), expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_damage_has_pillows_outcome(tmp_path, scene, mode):
    """Whatever a damaged file is, an error or an image: both readers say the same."""
    sound = jpeg(scene.convert(mode).resize((53, 37)), restart_marker_blocks=3)
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
            expected, found = outcome(load_rgb, path), outcome(load_pixels, path)
        assert type(expected) is type(found)
        assert expected == found if isinstance(expected, str) else torch.equal(expected, found)
        images += not isinstance(expected, str)
    assert 10 < images < len(damaged) - 10


def test_pillows_limit_on_size_holds(tmp_path, scene, monkeypatch):
    path = tmp_path / "bomb.jpg"
    path.write_bytes(jpeg(scene))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"bomb\.jpg cannot be read"):
        load_pixels(path)


@pytest.mark.parametrize("read", [load_rgb, load_pixels, verify_image])
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


@pytest.mark.parametrize(("interpolation", "largest"), [("bilinear", 1), ("bicubic", 12)])
@pytest.mark.parametrize("size", [32, 224])
def test_train_transform_is_torchvisions(scene, interpolation, largest, size):
    """The same crops and flips from the same numbers; pixels differ by rounding: on average a tenth of one of 255."""
    reference = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, interpolation=transforms.InterpolationMode(interpolation)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
        ]
    )
    ours = train_transform(size, mean=(0, 0, 0), std=(1, 1, 1), interpolation=interpolation)
    for seed in range(12):
        image = scene if seed % 3 else scene.transpose(Image.Transpose.ROTATE_90)
        torch.manual_seed(seed)
        view, state = ours(image), torch.get_rng_state()
        torch.manual_seed(seed)
        difference = 255 * (view - reference(image)).abs()
        assert torch.equal(state, torch.get_rng_state())
        assert difference.max() < largest + 0.01
        assert difference.mean() < 0.1


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (64, 64)])
def test_train_transform_of_any_size(size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    view = train_transform(16)(image)
    assert (view.shape, view.dtype, view.is_contiguous()) == ((3, 16, 16), torch.float32, True)


def test_train_transform_normalises():
    grey = Image.new("RGB", (9, 9), (51, 102, 204))
    expected = (torch.tensor([0.2, 0.4, 0.8]) - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(train_transform(8)(grey), expected.view(3, 1, 1).expand(3, 8, 8), rtol=0, atol=1e-6)


def test_train_transform_takes_pixels_in_any_memory_order(scene):
    views = []
    for image in (scene, as_tensor(scene), as_tensor(scene).contiguous()):
        torch.manual_seed(1)
        views.append(train_transform(64)(image))
    assert torch.equal(views[0], views[1])
    assert torch.equal(views[0], views[2])


def test_data_set_reads_with_its_transforms_reader(tmp_path, scene):
    (tmp_path / "train" / "n01").mkdir(parents=True)
    scene.convert("CMYK").save(tmp_path / "train" / "n01" / "b.jpg")
    scene.save(tmp_path / "train" / "n01" / "a.jpg", quality=95)
    transform = train_transform(48)
    fast = ImageNetDataset(tmp_path, "train", transform)
    plain = ImageNetDataset(tmp_path, "train", lambda image: transform(image))
    for index in range(2):
        samples = []
        for dataset in (fast, plain):
            torch.manual_seed(index)
            samples.append(dataset[index])
        assert torch.equal(samples[0]["image"], samples[1]["image"])
        assert samples[0]["image_hw"].tolist() == samples[1]["image_hw"].tolist() == [171, 233]
    (tmp_path / "train" / "n01" / "a.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a\.jpg cannot be read"):
        fast[0]


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
