"""Images at native resolution: pixels, padding, batches of one size, faults."""

from collections import Counter

import numpy as np
import pytest
import torch
from discovery_images import DiscoveryImages, build_native_loader, pad_to_patch
from object_lists import ImageObjects, ObjectList, leave_out_broken
from PIL import Image

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
# (h, w): three on a grid of 5 x 3 patches of 8, two on 3 x 5, one on 4 x 3
SIZES = [(33, 20), (20, 33), (34, 18), (32, 24), (20, 40), (35, 22)]


@pytest.fixture
def objects(tmp_path):
    rng = np.random.default_rng(0)
    images = []
    for i, (height, width) in enumerate(SIZES):
        path = tmp_path / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        boxes = torch.tensor([[1.0, 2.0, 10.0, 12.0]] * (i % 3))
        images.append(ImageObjects(path, (height, width), boxes.reshape(-1, 4), torch.zeros(i % 3, dtype=torch.long)))
    return ObjectList(images, ("thing",), Counter())


def test_a_sample_is_the_files_pixels(objects):
    images = DiscoveryImages(objects, MEAN, STD)
    sample = images[2]
    pixels = torch.from_numpy(np.array(Image.open(objects.images[2].path))).permute(2, 0, 1).double() / 255
    expected = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(sample["image"].double(), expected, rtol=1e-5, atol=1e-5)
    assert sample["image_hw"] == (34, 18) == images.image_hw(2)
    assert sample["objects_xyxy"].shape == (2, 4)
    assert (sample["index"], sample["name"]) == (2, "a/2.png")
    # the annotation of an image scaled by two, alone in its folder
    image = objects.images[2]._replace(frame_hw=(68, 36))
    sample = DiscoveryImages(objects._replace(images=[image]), MEAN, STD)[0]
    assert sample["objects_xyxy"][0].tolist() == [0.5, 1, 5, 6]
    assert sample["name"] == "2.png"


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 31), (8, 9), (15, 8)])
def test_padding(height, width):
    image = torch.rand(3, height, width) + 1
    padded = pad_to_patch(image, 8)
    assert padded.shape == (3, -(-height // 8) * 8, -(-width // 8) * 8)
    assert torch.equal(padded[:, :height, :width], image)
    assert padded.sum() == pytest.approx(float(image.sum()), rel=1e-5)


@pytest.mark.parametrize(
    ("batch_size", "num_workers", "sizes"), [(1, 0, [1] * 6), (2, 1, [1, 1, 2, 2]), (4, 0, [1, 2, 3])]
)
def test_batches_hold_every_image_once_and_one_size_each(objects, batch_size, num_workers, sizes):
    images, seen = DiscoveryImages(objects, MEAN, STD), {}
    batches = list(build_native_loader(images, 8, batch_size, num_workers))
    assert sorted(len(batch["name"]) for batch in batches) == sizes
    for batch in batches:
        for i, index in enumerate(batch["index"]):
            assert seen.setdefault(index, i) == i
            assert torch.equal(batch["image"][i], pad_to_patch(images[index]["image"], 8))
            assert torch.equal(batch["objects_xyxy"][i], images[index]["objects_xyxy"])
    assert sorted(seen) == list(range(6))


def test_faulty_images_are_named_or_counted(objects):
    with pytest.raises(ValueError, match=r"a/0\.png: the image is 20 x 33 pixels .* less than a patch of 32"):
        next(iter(build_native_loader(DiscoveryImages(objects, MEAN, STD), 32, 1, 0)))
    wrong = [objects.images[0]._replace(frame_hw=(20, 33)), *objects.images[1:]]
    with pytest.raises(ValueError, match=r"0\.png is 20 x 33 .*annotation says 33 x 20"):
        DiscoveryImages(objects._replace(images=wrong), MEAN, STD)[0]
    objects.images[1].path.write_bytes(b"nothing")
    kept = leave_out_broken(ObjectList(wrong, ("thing",), Counter({"no annotation": 2})))
    assert [image.path.name for image in kept.images] == ["2.png", "3.png", "4.png", "5.png"]
    expected = {"no annotation": 2, "broken image": 1, "image and annotation of different shape": 1}
    assert kept.skipped == expected
    with pytest.raises(ValueError, match="no image is left"):
        leave_out_broken(objects._replace(images=objects.images[1:2]))
