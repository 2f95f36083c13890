"""k-NN classification: against a float64 search written out by hand, in blocks, cached, and under torchrun."""

import shutil
from pathlib import Path

import eval_knn
import frozen_features
import knn_search
import numpy as np
import pytest
import torch
from frozen_parts import COLOURS, only_record, write_run
from PIL import Image
from record_parts import read_records
from script_parts import run_two_ranks
from torch.nn import functional as F
from torchvision import transforms

from last_vit.data import loaders
from last_vit.models import parse_model_argument


def clusters(num_bank=301):
    """Unit vectors around the centres of 7 classes, as (60 queries, their labels, bank, its labels)."""
    torch.manual_seed(0)
    centres, data = torch.randn(7, 16), []
    for number in (60, num_bank):
        labels = torch.randint(7, (number,))
        data += [F.normalize(centres[labels] + 1.4 * torch.randn(number, 16), dim=1), labels]
    return data


def by_hand(queries, query_labels, bank, bank_labels, num_classes, k, temperature):
    """Top-1 and top-5 in percent in float64, query by query."""
    hits = np.zeros(2)
    for query, label in zip(queries.double().numpy(), query_labels.tolist(), strict=True):
        similarity = bank.double().numpy() @ query
        votes = {}
        for i in np.argsort(-similarity)[:k]:
            votes[int(bank_labels[i])] = votes.get(int(bank_labels[i]), 0.0) + np.exp(similarity[i] / temperature)
        ranked = sorted(votes, key=votes.get, reverse=True)
        hits += (ranked[0] == label, label in ranked[:5])
    return 100 * hits / len(queries)


@pytest.mark.parametrize("temperature", [0.07, 1.0, 1e4])
def test_against_a_search_by_hand(temperature):
    data, ks = clusters(), (1, 5, 20, 301)
    found = knn_search.knn_accuracy(*data, 7, ks, temperature)
    assert list(found) == [name for k in ks for name in (f"knn_{k}", f"knn_{k}_top5")]
    for k in ks:
        expected = by_hand(*data, 7, k, temperature)
        assert [found[f"knn_{k}"], found[f"knn_{k}_top5"]] == pytest.approx(expected)
    assert 100 / 7 < found["knn_20"] < 100  # else the comparison would show nothing


def test_blocks_change_nothing_and_are_as_small_as_asked(monkeypatch):
    data = clusters(num_bank=1000)
    queries, _, bank, bank_labels = data
    best, index = (queries @ bank.T).topk(30, dim=1)
    whole = knn_search.knn_accuracy(*data, 7, (10, 30), 0.07)
    sizes, search = [], knn_search._nearest_in
    monkeypatch.setattr(
        knn_search, "_nearest_in", lambda q, block, k: sizes.append(len(q) * len(block)) or search(q, block, k)
    )
    for at_once, width in ((60, 1000), (60, 999), (60, 117), (7, 233)):
        sizes.clear()
        found = knn_search.find_nearest(queries, bank, bank_labels, 30, block_bytes=4 * 60 * width)
        assert (max(sizes), sum(sizes)) == (60 * width, 60 * 1000)
        torch.testing.assert_close(found[0], best, atol=1e-6, rtol=0)
        assert torch.equal(found[1], bank_labels[index])
        monkeypatch.setattr(knn_search, "_QUERIES", at_once)
        assert knn_search.knn_accuracy(*data, 7, (10, 30), 0.07, block_bytes=4 * at_once * width) == whole


def test_classes_without_votes_are_no_hits():
    """Two neighbours of classes 3 and 5: no other label may slip in among the five best of ten classes."""
    bank, bank_labels = torch.eye(4), torch.tensor([3, 5, 4, 4])
    queries = F.normalize(torch.tensor([[1.0, 0.5, 0.0, 0.0]])).expand(10, 4)
    for label in range(10):
        score = knn_search.knn_accuracy(queries[:1], torch.tensor([label]), bank, bank_labels, 10, (2,), 0.07)
        assert score == {"knn_2": 100 * (label == 3), "knn_2_top5": 100 * (label in (3, 5))}


def test_shares_are_put_together_in_order(monkeypatch):
    """Three processes' shares of 11 rows: 3, 4 and 4."""
    whole = torch.arange(22.0).reshape(11, 2)
    shares = [whole[0:3], whole[3:7], whole[7:11]]
    padded = [F.pad(share, (0, 0, 0, 4 - len(share)), value=-1) for share in shares]
    for module in (loaders, frozen_features):
        monkeypatch.setattr(module, "world_size", lambda: 3)
    monkeypatch.setattr(frozen_features, "all_gather", lambda own: [padded[0][: len(own)], *padded[1:]])
    assert torch.equal(frozen_features.gather_rows(shares[0], 11), whole)


@pytest.fixture
def run(flags):
    return lambda *more, into="output": only_record(eval_knn.main, *flags, "--nb_knn", 1, 4, *more, into=into)


def features(folder, split="val"):
    return torch.load(f"{folder}/{split}.pth")["features"]


def test_the_whole_script_against_dinos_steps(run, colours, capsys):
    record = run("--batch_size_per_gpu", "4")
    vit = parse_model_argument("dino:vit_mini/8@checkpoint.pth").load().model
    transform = transforms.Compose(
        [
            transforms.Resize(37, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    data = []
    for split in ("val", "train"):
        paths = sorted((colours / split).rglob("*.png"))
        with torch.no_grad():
            tokens = vit(torch.stack([transform(Image.open(path)) for path in paths]))
        labels = torch.tensor([sorted(COLOURS).index(path.parent.name) for path in paths])
        data += [F.normalize(tokens, dim=1), labels]
    for k in (1, 4):
        found = [record["metrics"][f"knn_{k}"], record["metrics"][f"knn_{k}_top5"]]
        assert found == pytest.approx(by_hand(*data, 3, k, 0.07), abs=1e-3)
    assert record["metrics"]["knn_4"] > 60  # colours are separable, chance is 33 %
    assert (record["n_images"], record["config"]["num_bank_images"]) == (9, 18)
    assert record["dataset"] == f"{colours.name} val, 32 px"
    assert (record["config"]["input_resize"], record["config"]["input_interpolation"]) == (37, "bicubic")
    assert "top-1" in capsys.readouterr().out


def test_networks_and_poolings_have_their_own_features(run, tmp_path):
    """The student's, a recorded LaSt's, which is that asked for, and a released file's, which is the teacher's."""
    write_run(tmp_path / "recorded.pth", "last", 0.5)
    torch.save(parse_model_argument("dino:vit_mini/8@checkpoint.pth").load().model.state_dict(), "released.pth")
    found = {
        name: run("--dump_features", name, *more)
        for name, *more in (
            ("teacher",),
            ("student", "--checkpoint_key", "student"),
            ("recorded", "--pretrained_weights", "recorded.pth"),
            ("asked", "--pooling", "last", "--top_k", "0.5"),
            ("released", "--pretrained_weights", "released.pth", "--image_size", "32"),
        )
    }
    assert found["recorded"]["config"]["pooling"]["top_k"] == 0.5
    assert found["asked"]["config"]["pooling_source"] == "asked for"
    assert torch.equal(features("recorded"), features("asked"))
    assert torch.equal(features("released"), features("teacher"))
    for name in ("student", "recorded"):
        assert not torch.allclose(features("teacher"), features(name), atol=1e-2)


@pytest.mark.parametrize("arch", ["resnet18", "xcit_nano_12_p16"])
def test_random_controls_of_any_backbone(run, arch):
    record = run("--arch", arch, "--image_size", "64", "--pretrained_weights", "random")
    assert record["dataset"].endswith("64 px")
    assert record["config"]["pooling"] == {"pool": "host"}
    assert (record["checkpoint_sha256"], record["config"]["weights"]) == (None, "random, seed 0")


def test_a_cache_needs_no_pass_and_one_of_something_else_is_refused(run, flags, colours, monkeypatch, refused):
    computed = run("--dump_features", "cache", "--row", "tiny", into="results")
    monkeypatch.setattr(frozen_features, "extract_features", None)
    cached = run("--load_features", "cache")
    assert cached["metrics"] == computed["metrics"]
    assert (computed["table"], computed["row"], cached["table"]) == ("knn", "tiny", None)
    assert (computed["config"]["cached_features"], cached["config"]["cached_features"]) == (False, True)
    assert not list(Path("cache").glob(".*"))
    path, images = Path("cache/train.pth"), Path("images")
    write_run(Path("other.pth"), seed=7)
    whole, first = path.read_bytes(), images / "train" / "n01" / "train_0.png"
    shutil.copytree(colours, images)

    def load(*more):
        return refused(eval_knn.main, *flags, "--nb_knn", "1", "--load_features", "cache", *more)

    for more, match in (
        (["--pretrained_weights", "other.pth"], "weights"),
        (["--resize", "40"], "input_resize 37 there, 40 here"),
        (["--image_size", "24"], "input_crop 32 there, 24 here"),
        (["--pooling", "mean"], "pooling"),
        (["--checkpoint_key", "student"], "checkpoint_key teacher there, student here"),
    ):
        assert match in load(*more)
    first = first.rename(first.with_name("train_00.png"))
    assert "files_and_labels" in load("--data_path", images)
    first.unlink()
    assert "num_images 18 there, 17 here" in load("--data_path", images)
    path.write_bytes(whole[:5000])
    assert "truncated, corrupt" in load()
    torch.save({"state": 1}, path)
    assert "no cache of --dump_features" in load()
    path.unlink()
    assert "no checkpoint file at cache/train.pth" in load()


def test_two_processes_equal_one(run, flags):
    more = ["--nb_knn", "1", "12"]
    alone = run(*more, "--dump_features", "one")
    more += ["--dump_features", "two", "--output", "two", "--batch_size_per_gpu", "5"]
    run_two_ranks("dino/eval_knn.py", *flags, *more)
    (two,) = [record for record in read_records("output") if record["name"].startswith("two")]
    assert two["metrics"] == alone["metrics"]
    assert (two["n_images"], two["num_processes"]) == (9, 2)
    for split in ("train", "val"):
        torch.testing.assert_close(features("one", split), features("two", split), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["--data_path", "nowhere"], "nowhere does not exist"),
        (["--data_path", "images"], "only in train ['n02'], only in val ['n09']"),
        (["--pretrained_weights", "missing.pth"], "missing.pth"),
        (["--pretrained_weights", "nan.pth"], "NaN or infinite"),
        (["--nb_knn", "1", "19"], "--nb_knn 19 is more than the 18 training images"),
        (["--temperature", "0"], "--temperature: must be positive"),
        (["--dump_features", "a", "--load_features", "a"], "one of them"),
        (["--checkpoint_key", "model"], "has no entry 'model'; it holds student, teacher"),
        (["--arch", "vit_nope"], "'vit_nope' is not supported"),
        (["--arch", "vit_tiny"], "does not fit"),
        (["--image_size", "36"], "must be a multiple of the patch size 8, got 36"),
        (["--resize", "20"], "got crop 32 and resize 20 pixels"),
        (["--top_k", "3"], "for pool 'last'"),
        (["--pooling", "last", "--top_k", "17"], "17"),
        (["--device", "tpu"], "device must be"),
    ],
)
def test_one_line_for_every_mistake(flags, colours, refused, more, match):
    if "nan.pth" in more:
        content = torch.load("checkpoint.pth")
        content["teacher"]["backbone.norm.bias"][3] = float("nan")
        torch.save(content, "nan.pth")
    if "images" in more:
        shutil.copytree(colours, "images")
        Path("images/val/n02").rename("images/val/n09")
    error = refused(eval_knn.main, *flags, "--nb_knn", "1", *more)
    assert "eval_knn.py: error: " in error
    assert match in error
