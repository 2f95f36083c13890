"""The trainer's data and records, part by part: COCO captions, class folders, order, skips, checkpoints."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from caption_sources import ClassFolder, DrawnImages
from clip_train_data import CaptionedImages, EpochBatches
from clip_train_epoch import WatchedLoss
from clip_train_overlay import Overlay, replaced
from clip_train_parts import picture, write_coco
from clip_train_record import latest_checkpoint, save_whole
from clip_train_skips import SkipCounter, describe_skips, first_sound
from coco_captions import CocoCaptions
from open_clip_train.data import SharedEpoch

from last_vit.data.loaders import SeededSamples
from last_vit.data.synthetic import SyntheticObjects
from last_vit.data.synthetic import write_coco as write_drawn_coco


def test_coco_layouts_and_captions(tmp_path):
    path = write_coco(tmp_path / "coco", count=3)
    write_coco(tmp_path / "coco", count=2, split="val2017", captions=1)
    for root, split, count in ((tmp_path / "coco", "train", 3), (tmp_path / "coco", "val", 2), (path, "val", 3)):
        assert len(CocoCaptions(root, split)) == count
    captions = CocoCaptions(path, "train")
    image, texts = captions.sample(1)
    assert (image.mode, image.size) == ("RGB", (40, 40))
    assert texts == ("caption 0 of 1", "caption 1 of 1", "caption 2 of 1")
    content = json.loads(path.read_text())
    (path.parent / "captions.json").write_text(
        json.dumps(content | {"annotations": [{"image_id": 101, "caption": "one"}, {"image_id": 102, "caption": " "}]})
    )
    few = path.parent / "captions_train2017.json"
    (path.parent / "captions.json").replace(few)
    captions = CocoCaptions(few, "train")
    assert (len(captions), captions.skipped) == (1, 2)


def test_coco_as_our_writer_makes_it(tmp_path):
    drawn = SyntheticObjects(4, "train", 32, num_classes=2)
    write_drawn_coco(drawn, tmp_path)
    captions = CocoCaptions(tmp_path, "train")
    assert [captions.captions[index][0] for index in range(4)] == [drawn.render(index).caption for index in range(4)]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"annotations": [{"image_id": 7, "caption": "x"}]}, "is of image 7"),
        ({"annotations": [{"caption": "x"}]}, r"annotations\[0\] has no image_id"),
        ({"annotations": []}, "not one of them has a caption"),
        ({"annotations": None}, "has no list annotations"),
        ({"images": [{"id": 100}]}, "no file_name"),
        ({"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]}, "another image has the id 1"),
    ],
)
def test_broken_coco_files_are_named(tmp_path, change, match):
    path = write_coco(tmp_path / "coco", count=1)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=match):
        CocoCaptions(path, "train")


def test_coco_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no captions_"):
        CocoCaptions(tmp_path, "train")
    path = write_coco(tmp_path / "coco")
    path.write_text("{")
    with pytest.raises(ValueError, match="not readable JSON"):
        CocoCaptions(path, "train")
    path = write_coco(tmp_path / "moved")
    (tmp_path / "moved" / "train2017").rename(tmp_path / "moved" / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"the first image of .*000000000000.jpg"):
        CocoCaptions(path, "train")
    for name in ("captions_a.json", "captions_b.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match="give the file itself"):
        CocoCaptions(tmp_path, "train")


def test_class_folders_are_captioned_with_templates_and_synonyms(tmp_path):
    for name in ("a_b", "c"):
        (tmp_path / "train" / name).mkdir(parents=True)
        picture(0).save(tmp_path / "train" / name / "0.png")
    (tmp_path / "names.txt").write_text("dog;hound\ncat\n")
    folder = ClassFolder(tmp_path, "train", str(tmp_path / "names.txt"), ["a photo of a {}", "{}."])
    assert folder.sample(0)[1] == ("a photo of a dog", "a photo of a hound", "dog.", "hound.")
    assert ClassFolder(tmp_path / "train", "train", "folders", ["{}"]).sample(0)[1] == ("a b",)
    with pytest.raises(ValueError, match=r"hold \{\} once"):
        ClassFolder(tmp_path, "train", "folders", ["a photo"])
    with pytest.raises(ValueError, match="not ImageNet's"):
        ClassFolder(tmp_path, "train", None, ["{}"])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ClassFolder(tmp_path / "none", "train", None, ["{}"])


def test_drawn_images_are_those_of_synthetic():
    source = DrawnImages(3, "val", 32)
    drawn = SyntheticObjects(3, "val", 32).render(2)
    image, captions = source.sample(2)
    assert captions == (drawn.caption,)
    assert image.tobytes() == drawn.image.tobytes()


def epoch_of(batches, samples):
    return [samples[position][1] for batch in batches for position in batch]


def test_order_and_captions_are_a_function_of_seed_epoch_and_position(tmp_path):
    source = CocoCaptions(write_coco(tmp_path / "coco", count=10), "train")
    dataset = CaptionedImages(source, lambda image: image, lambda texts: texts, SkipCounter(), draw=True)
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
    still = CaptionedImages(source, lambda image: image, lambda texts: texts, SkipCounter(), draw=False)
    assert still[3][1] == "caption 0 of 3"


def test_faulty_samples_are_replaced_by_the_next_sound_one(caplog):
    def read(index):
        if index != 2:
            raise ValueError(f"broken {index}")
        return index

    skips = SkipCounter()
    assert [first_sound(index, 5, read, skips) for index in (2, 3, 1)] == [2, 2, 2]
    assert describe_skips(skips.take()) == "5 skipped samples (5 broken image)"
    assert describe_skips(skips.take()) == "0 skipped samples"
    assert "number 4: broken 4" in caplog.text
    assert caplog.text.count("Skipped") == 3  # the first ones by name, the others by number
    with pytest.raises(ValueError, match="3 samples in a row, from number 1"):
        first_sound(1, 3, lambda _: read(0), skips)


def test_watched_loss_names_term_epoch_and_step():
    values = iter([1.0, 2.0, float("inf"), 3.0])
    watched = WatchedLoss(lambda: {"term": torch.tensor(next(values))}, epoch=4, accum_freq=2, hint="HINT")
    assert watched()["term"] == 1.0
    watched()
    watched()  # looked at when the next one is there
    with pytest.raises(FloatingPointError, match="term is inf in epoch 4, step 1; HINT"):
        watched()
    watched = WatchedLoss(lambda: {"term": torch.tensor(float("nan"))}, epoch=0, accum_freq=1, hint="")
    watched()
    with pytest.raises(FloatingPointError, match="term is nan in epoch 0, step 0"):
        watched.check()


def test_latest_checkpoint_is_the_newest_whole_one(tmp_path):
    def save(name, epoch):
        save_whole({"epoch": epoch, "state_dict": {"w": torch.ones(100)}}, str(tmp_path / name))

    def latest():
        found = latest_checkpoint(lambda *_: "remote", str(tmp_path), False)
        return found and Path(found).name

    assert latest() is None
    save("epoch_9.pt", 9)
    save("epoch_10.pt", 10)
    save("epoch_latest.pt", 3)  # of an earlier run with --save-most-recent
    save("tmp.pt", 11)
    assert latest() == "epoch_10.pt"
    save("epoch_latest.pt", 12)
    assert latest() == "epoch_latest.pt"
    for name in ("epoch_latest.pt", "epoch_10.pt"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-30])
    assert latest() == "epoch_9.pt"
    assert latest_checkpoint(lambda *_: "remote", "s3://bucket", True) == "remote"


def test_overlay_and_replaced_touch_one_importer_alone():
    overlay = Overlay(torch, save="ours", nn=Overlay(torch.nn, Linear="ours"))
    assert (overlay.save, overlay.nn.Linear, overlay.ones) == ("ours", "ours", torch.ones)
    assert overlay.nn.Conv2d is torch.nn.Conv2d
    assert torch.save != "ours"
    with pytest.raises(AttributeError), replaced(torch, no_such_name=1):
        pass
    with pytest.raises(KeyError), replaced(torch, save="ours"):
        raise KeyError
    assert torch.save != "ours"
