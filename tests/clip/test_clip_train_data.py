"""The trainer's data and records, part by part: COCO captions, class folders, order, skips, broken archives."""

import io
import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from caption_sources import DrawnImages, class_folder, coco_captions, csv_captions
from clip_train_data import CaptionedImages, EpochBatches, SkipCounter, decode_as_files, describe_skips, shard_samples
from clip_train_parts import picture, sound, write_coco, write_shard
from clip_train_seams import WatchedLoss
from open_clip_train.data import SharedEpoch
from PIL import Image

from last_vit.data.loaders import SeededSamples
from last_vit.data.synthetic import SyntheticObjects
from last_vit.data.synthetic import write_coco as write_drawn_coco


def test_coco_layouts_and_captions(tmp_path):
    path = write_coco(tmp_path / "coco", count=3)
    write_coco(tmp_path / "coco", count=2, split="val2017", captions=1)
    for root, split, count in ((tmp_path / "coco", "train", 3), (tmp_path / "coco", "val", 2), (path, "val", 3)):
        assert len(coco_captions(root, split)) == count
    image, texts = coco_captions(path, "train").sample(1)
    assert (image.mode, image.size) == ("RGB", (40, 40))
    assert texts == ("caption 0 of 1", "caption 1 of 1", "caption 2 of 1")
    few = [{"image_id": 101, "caption": "one"}, {"image_id": 102, "caption": " "}]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": few}))
    assert len(coco_captions(path, "train")) == 1
    drawn = SyntheticObjects(4, "train", 32, num_classes=2)
    write_drawn_coco(drawn, tmp_path / "drawn")
    captions = coco_captions(tmp_path / "drawn", "train").captions
    assert [own[0] for own in captions] == [drawn.render(index).caption for index in range(4)]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (None, "COCO's captions"),
        ({"annotations": [{"image_id": 7, "caption": "x"}]}, r"annotations\[0\] is of image 7"),
        ({"annotations": [{"caption": "x"}]}, "'image_id' is missing"),
        ({"annotations": []}, "not one of them has a caption"),
        ({"annotations": None}, "COCO's captions"),
        ({"images": [{"id": 100}], "annotations": [{"image_id": 100, "caption": "x"}]}, "'file_name' is missing"),
        ({"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]}, "two images have one id"),
    ],
)
def test_broken_coco_files_are_named(tmp_path, change, match):
    path = write_coco(tmp_path / "coco", count=1)
    path.write_text("{" if change is None else json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=match) as raised:
        coco_captions(path, "train")
    assert str(path) in str(raised.value)


def test_coco_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no captions_"):
        coco_captions(tmp_path, "train")
    path = write_coco(tmp_path / "moved")
    (tmp_path / "moved" / "train2017").rename(tmp_path / "moved" / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"the first image of .*000000000000.jpg"):
        coco_captions(path, "train")
    for name in ("captions_a.json", "captions_b.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match="Give the file itself"):
        coco_captions(tmp_path, "train")


def test_texts_that_begin_with_a_byte_order_mark(tmp_path):
    picture(0).save(tmp_path / "0.png")
    (tmp_path / "data.csv").write_text("\ufefffilepath,title\n0.png,a dog\n", encoding="utf-8")
    assert csv_captions(str(tmp_path / "data.csv"), "filepath", "title", ",").captions == [("a dog",)]
    content = {"images": [{"id": 1, "file_name": "0.png"}], "annotations": [{"image_id": 1, "caption": "a dog"}]}
    (tmp_path / "captions_x.json").write_text("\ufeff" + json.dumps(content), encoding="utf-8")
    assert coco_captions(tmp_path, "train").captions == [("a dog",)]


def test_sixteen_bit_grey_in_shards_is_scaled():
    buffer = io.BytesIO()
    Image.fromarray(np.full((2, 3), 40000, dtype=np.uint16)).save(buffer, "PNG")
    samples = [{"__key__": "0", "PNG": buffer.getvalue(), "txt": b"a dog"}]
    (sample,) = decode_as_files("pilrgb", handler=lambda error: False)(samples)
    assert (sample["PNG"].getpixel((0, 0)), sample["txt"]) == ((156, 156, 156), "a dog")


def test_class_folders_are_captioned_with_templates_and_synonyms(tmp_path):
    for name in ("a_b", "c"):
        (tmp_path / "train" / name).mkdir(parents=True)
        picture(0).save(tmp_path / "train" / name / "0.png")
    (tmp_path / "names.txt").write_text("dog;hound\ncat\n")
    folder = class_folder(tmp_path, "train", str(tmp_path / "names.txt"), ["a photo of a {}", "{}."])
    assert folder.sample(0)[1] == ("a photo of a dog", "a photo of a hound", "dog.", "hound.")
    assert class_folder(tmp_path / "train", "train", "folders", ["{}"]).sample(0)[1] == ("a b",)
    for name in ("2", "10"):
        (tmp_path / "numbers" / name / "images").mkdir(parents=True)
        picture(0).save(tmp_path / "numbers" / name / "images" / "0.png")
    numbers = class_folder(tmp_path / "numbers", "train", str(tmp_path / "names.txt"), ["{}"])
    assert {Path(path).parts[-3]: own[0] for path, own in zip(numbers.image_paths, numbers.captions, strict=True)} == {
        "2": "dog",
        "10": "cat",
    }
    for root, names, template, match in (
        (tmp_path, "folders", "a photo", r"hold \{\} once"),
        (tmp_path, None, "{}", "not ImageNet's"),
        (tmp_path / "none", None, "{}", "no folder .*none"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=match):
            class_folder(root, "train", names, [template])


def epoch_of(batches, samples):
    return [samples[position][1] for batch in batches for position in batch]


def captioned(source, **options):
    return CaptionedImages(source, lambda image: image, lambda texts: texts, **{"draw": True, **options})


def test_order_and_captions_are_a_function_of_seed_epoch_and_position(tmp_path):
    source = coco_captions(write_coco(tmp_path / "coco", count=10), "train")
    dataset = captioned(source, skips=SkipCounter())
    epochs = {}
    for epoch in (0, 1):
        one = EpochBatches(10, Namespace(batch_size=4, rank=0, world_size=1), SharedEpoch(epoch))
        assert len(one) == 2
        epochs[epoch] = epoch_of(one, SeededSamples(dataset, 0))
        assert epoch_of(one, SeededSamples(dataset, 0)) == epochs[epoch]
        assert len({caption.split(" of ")[1] for caption in epochs[epoch]}) == 8  # no image twice
        two = [
            list(EpochBatches(10, Namespace(batch_size=2, rank=rank, world_size=2), SharedEpoch(epoch)))
            for rank in (0, 1)
        ]
        assert [a + b for a, b in zip(*two, strict=True)] == list(one)  # two processes share each step
    assert epochs[0] != epochs[1]
    assert epoch_of(one, SeededSamples(dataset, 1)) != epochs[1]
    many = [SeededSamples(dataset, 0)[10 * epoch][1][:9] for epoch in range(30)]
    assert {caption[:9] for caption in many} == {f"caption {place}" for place in range(3)}  # each is drawn
    assert captioned(source, skips=SkipCounter(), draw=False)[3][1] == "caption 0 of 3"


def test_faulty_samples_are_replaced_by_the_next_sound_one(caplog):
    class Source(DrawnImages):
        def sample(self, index):
            if index not in sound_ones:
                raise ValueError(f"broken {index}")
            return index, (str(index),)

    sound_ones, skips = {2}, SkipCounter()
    dataset = captioned(Source(5, "train", 32), skips=skips)
    assert [dataset[index][0] for index in (2, 3, 1)] == [2, 2, 2]
    assert describe_skips(skips.take()) == "5 skipped (5 broken image)"
    assert describe_skips(skips.take()) == "0 skipped"
    assert "number 4: broken 4" in caplog.text
    assert caplog.text.count("Skipped") == 3  # the first ones by name, the others by number
    sound_ones.clear()
    with pytest.raises(ValueError, match="5 samples in a row, from number 1"):
        dataset[1]


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_an_archive_cut_anywhere_is_reported_once_and_gives_what_is_whole(tmp_path, ending):
    samples = {f"{number:03d}": sound(number) for number in range(6)}
    path = tmp_path / f"whole.{ending}"
    write_shard(path, samples)
    whole, skips = path.read_bytes(), SkipCounter()

    def read(content):
        cut = tmp_path / f"cut.{ending}"
        cut.write_bytes(content)
        found = list(shard_samples([{"url": str(cut)}], skips))
        assert [sample["__key__"] for sample in found] == list(samples)[: len(found)]
        for sample in found:
            assert all(sample[name] == samples[sample["__key__"]][name] for name in ("jpg", "txt"))
        return len(found), describe_skips(skips.take())

    end, one = len(whole), "1 skipped (1 broken archive)"
    if ending == "tar":
        end = -(-len(whole.rstrip(b"\0")) // 512) * 512 + 512  # behind the first block of zeros; the rest is padding
        assert read(whole.replace(b"003.jpg\0", b"003.jpeg")) == (3, one)  # a checksum is off
    assert read(whole[:end]) == (6, "0 skipped")
    counts = [read(whole[:place]) for place in sorted({end - 1, *range(0, end, 512), *range(1, end, 997)})]
    if ending == "tar":
        assert set(counts) == {(number, one) for number in range(7)}
    else:  # without its checksum all of it may be there
        assert {words for number, words in counts if number < 6} == {one}
    assert [*shard_samples([{"url": str(tmp_path / "missing.tar")}], skips)] == []
    assert describe_skips(skips.take()) == "1 skipped (1 broken archive)"


@pytest.mark.parametrize(("values", "step"), [((1.0, 2.0, float("inf"), 3.0), 1), ((1.0, float("nan")), 0)])
def test_a_loss_that_is_not_finite_is_named_with_its_epoch_and_step(values, step):
    """Also the last one, which no other follows."""
    losses = iter(values)
    watched = WatchedLoss(lambda: {"term": torch.tensor(next(losses))}, 4, accum_freq=2, hint="go back", done=0)

    def train() -> None:
        for value in values:
            assert watched()["term"].item() == pytest.approx(value, nan_ok=True)
        watched.check()

    with pytest.raises(FloatingPointError, match=rf"term is (inf|nan) in epoch 4, step {step}; go back"):
        train()
