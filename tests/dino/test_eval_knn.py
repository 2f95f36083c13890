"""k-NN classification: against a float64 search written out by hand, in blocks, cached, and under torchrun."""

import shutil
from pathlib import Path

import eval_knn
import frozen_features
import knn_search
import numpy as np
import pytest
import torch
from frozen_parts import COLOURS, MODEL, records, refused, run_two, write_run
from PIL import Image
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import transforms

from last_vit.data import loaders
from last_vit.models import parse_model_argument


def clusters(num_queries=60, num_bank=301, num_classes=7, dim=16, spread=0.35, seed=0):
    """Unit vectors around a centre per class, as (queries, their labels, bank, its labels)."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, dim, generator=generator)

    def draw(number):
        labels = torch.randint(num_classes, (number,), generator=generator)
        vectors = centres[labels] + spread * dim**0.5 * torch.randn(number, dim, generator=generator)
        return F.normalize(vectors, dim=1), labels

    return *draw(num_queries), *draw(num_bank)


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
    data = clusters()
    ks = (1, 5, 20, 301)
    found = knn_search.knn_accuracy(*data, 7, ks, temperature)
    assert list(found) == [name for k in ks for name in (f"knn_{k}", f"knn_{k}_top5")]
    for k in ks:
        expected = by_hand(*data, 7, k, temperature)
        assert [found[f"knn_{k}"], found[f"knn_{k}_top5"]] == pytest.approx(expected)
    assert 100 / 7 < found["knn_20"] < 100  # else the comparison would show nothing


def test_blocks_change_nothing(monkeypatch):
    data = clusters(num_bank=1000)
    queries, _, bank, bank_labels = data
    best, index = (queries @ bank.T).topk(30, dim=1)
    whole = knn_search.knn_accuracy(*data, 7, (10, 30), 0.07)
    for at_once, width in ((60, 1000), (60, 999), (60, 17), (7, 33), (1, 1)):
        found = knn_search.find_nearest(queries, bank, bank_labels, 30, block_bytes=4 * 60 * width)
        torch.testing.assert_close(found.similarity, best, atol=1e-6, rtol=0)
        assert torch.equal(found.labels, bank_labels[index])
        monkeypatch.setattr(knn_search, "_QUERIES", at_once)
        assert knn_search.knn_accuracy(*data, 7, (10, 30), 0.07, block_bytes=4 * at_once * width) == whole


class Largest(TorchDispatchMode):
    """The most bytes that one tensor made inside has."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple) else (made,):
            if isinstance(tensor, torch.Tensor) and "view" not in str(function) and "slice" not in str(function):
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return made


def test_the_block_is_bounded_by_its_argument():
    """Nothing as large as the bank, or as all similarities, is made; only blocks of the size that was asked for."""
    queries, _, bank, bank_labels = clusters(num_queries=300, num_bank=20_000)
    with Largest() as watch:
        knn_search.find_nearest(queries, bank, bank_labels, 5, block_bytes=300_000)
    assert 150_000 < watch.bytes <= 300_000 < bank.numel() * 4


def test_classes_without_votes_are_no_hits():
    """Two neighbours of classes 3 and 5; the label, 4, must not slip in among the five best of ten classes."""
    bank, bank_labels = torch.eye(4), torch.tensor([3, 5, 4, 4])
    queries = F.normalize(torch.tensor([[1.0, 0.5, 0.0, 0.0]]), dim=1)
    scores = [
        knn_search.knn_accuracy(queries, torch.tensor([label]), bank, bank_labels, 10, (2,), 0.07)
        for label in range(10)
    ]
    assert [score["knn_2_top5"] for score in scores] == [0, 0, 0, 100, 0, 100, 0, 0, 0, 0]
    assert [scores[label]["knn_2"] for label in (3, 5)] == [100, 0]


@pytest.mark.parametrize("rows", [1, 3, 8192])
def test_shares_are_put_together_in_order_and_read_apart(monkeypatch, tmp_path, rows):
    """Three processes' shares of 11 rows (3, 4 and 4), sent so many rows at a time."""
    whole = torch.arange(22.0).reshape(11, 2)
    shares = [whole[0:3], whole[3:7], whole[7:11]]
    calls = iter(range(99))

    def all_gather(own):
        start = next(calls) * rows
        parts = [share[start : start + len(own)] for share in shares]
        return [F.pad(part, (0, 0, 0, len(own) - len(part)), value=-1) for part in parts]

    monkeypatch.setattr(loaders, "world_size", lambda: 3)
    monkeypatch.setattr(frozen_features, "world_size", lambda: 3)
    monkeypatch.setattr(frozen_features, "all_gather", all_gather)
    monkeypatch.setattr(frozen_features, "_ROWS", rows)
    assert torch.equal(frozen_features.gather_rows(shares[0], 11), whole)
    frozen_features.dump_features(tmp_path, "val", {}, whole)
    monkeypatch.setattr(frozen_features, "rank", lambda: 1)
    assert torch.equal(frozen_features.load_features(tmp_path, "val", {}, 11), shares[1])


@pytest.fixture
def arguments(colours, trained_vit, tmp_path, monkeypatch):
    """The command line, which --data_path, --pretrained_weights and --nb_knn at its end may override."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(trained_vit, "checkpoint.pth")
    given = [*MODEL, "--pretrained_weights", "checkpoint.pth", "--data_path", str(colours), "--nb_knn", "1", "4"]
    return [*given, "--num_workers", "0"]


@pytest.fixture
def run(arguments):
    def call(*flags, into="output"):
        shutil.rmtree(into, ignore_errors=True)
        eval_knn.main([*arguments, "--device", "cpu", *map(str, flags)])
        (record,) = records(into)
        return record

    return call


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
    vit = parse_model_argument("dino:vit_mini/8@checkpoint.pth").load().model
    torch.save(vit.state_dict(), tmp_path / "released.pth")
    found = {
        "teacher": run("--dump_features", "teacher"),
        "student": run("--dump_features", "student", "--checkpoint_key", "student"),
        "recorded": run("--dump_features", "recorded", "--pretrained_weights", "recorded.pth"),
        "asked": run("--dump_features", "asked", "--pooling", "last", "--top_k", "0.5"),
        "released": run("--dump_features", "released", "--pretrained_weights", "released.pth", "--image_size", "32"),
    }
    assert found["recorded"]["config"]["pooling"]["top_k"] == 0.5
    assert found["asked"]["config"]["pooling_source"] == "asked for"
    assert torch.equal(features("recorded"), features("asked"))
    assert torch.equal(features("released"), features("teacher"))
    for name in ("student", "recorded"):
        assert not torch.allclose(features("teacher"), features(name), atol=1e-2)


@pytest.mark.parametrize("arch", ["vit_mini", "resnet18", "xcit_nano_12_p16"])
def test_random_controls_of_any_backbone(run, arch):
    record = run("--arch", arch, "--image_size", "64", "--pretrained_weights", "random")
    assert record["dataset"].endswith("64 px")
    assert record["config"]["pooling"] == {"pool": "host"}
    assert (record["checkpoint_sha256"], record["config"]["weights"]) == (None, "random, seed 0")


def test_the_cache_gives_the_same_and_needs_no_pass(run, monkeypatch):
    computed = run("--dump_features", "cache", "--row", "tiny", into="results")
    monkeypatch.setattr("knn_search.extract_features", None)
    cached = run("--load_features", "cache")
    assert cached["metrics"] == computed["metrics"]
    assert (computed["table"], computed["row"], cached["table"]) == ("knn", "tiny", None)
    assert (computed["config"]["cached_features"], cached["config"]["cached_features"]) == (False, True)
    assert not list(Path("cache").glob(".*"))


def test_a_cache_of_something_else_is_refused(run, arguments, colours, tmp_path, capsys):
    run("--dump_features", "cache")
    path, images = Path("cache/train.pth"), tmp_path / "images"
    write_run(tmp_path / "other.pth", seed=7)
    whole, first = path.read_bytes(), images / "train" / "n01" / "train_0.png"
    shutil.copytree(colours, images)

    def load(*flags):
        return refused(capsys, eval_knn.main, *arguments, "--load_features", "cache", "--device", "cpu", *flags)

    for flags, match in (
        (["--pretrained_weights", "other.pth"], "weights"),
        (["--resize", "40"], "input_resize 37 there, 40 here"),
        (["--image_size", "24"], "input_crop 32 there, 24 here"),
        (["--pooling", "mean"], "pooling"),
        (["--checkpoint_key", "student"], "checkpoint_key teacher there, student here"),
    ):
        assert match in load(*flags)
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


def test_two_processes_equal_one(run, arguments):
    more = ["--nb_knn", "1", "12"]  # 12 is more than a process's share, 9 of 18
    alone = run(*more, "--dump_features", "one")
    run_two("eval_knn.py", *arguments, *more, "--dump_features", "two", "--output", "two", "--batch_size_per_gpu", "5")
    (two,) = [record for record in records() if record["name"].startswith("two")]
    assert two["metrics"] == alone["metrics"]
    assert (two["n_images"], two["num_processes"]) == (9, 2)
    for split in ("train", "val"):
        torch.testing.assert_close(features("one", split), features("two", split), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--data_path", "nowhere"], "nowhere does not exist"),
        (["--pretrained_weights", "missing.pth"], "missing.pth"),
        (["--nb_knn", "1", "19"], "--nb_knn 19 is more than the 18 training images"),
        (["--temperature", "0"], "--temperature: must be positive"),
        (["--dump_features", "a", "--load_features", "a"], "one of them"),
        (["--checkpoint_key", "model"], "has no entry 'model'; it holds student, teacher"),
        (["--arch", "vit_nope"], "'vit_nope' is not supported"),
        (["--arch", "vit_tiny"], "does not fit"),
        (["--patch_size", "16"], "does not fit"),
        (["--image_size", "36"], "must be a multiple of --patch_size 8, got 36"),
        (["--resize", "20"], "--resize must not be smaller"),
        (["--top_k", "3"], "for pool 'last'"),
        (["--pooling", "last", "--top_k", "17"], "17"),
        (["--device", "tpu"], "device must be"),
    ],
)
def test_one_line_for_every_mistake(arguments, capsys, flags, match):
    error = refused(capsys, eval_knn.main, *arguments, "--device", "cpu", *flags)
    assert "eval_knn.py: error: " in error
    assert match in error


def test_damaged_weights_and_splits_of_different_classes(arguments, colours, tmp_path, capsys):
    content = torch.load("checkpoint.pth")
    content["teacher"]["backbone.norm.bias"][3] = float("nan")
    torch.save(content, "nan.pth")
    assert "NaN or infinite" in refused(capsys, eval_knn.main, *arguments, "--pretrained_weights", "nan.pth")
    images = Path(shutil.copytree(colours, tmp_path / "images"))
    (images / "val" / "n02").rename(images / "val" / "n09")
    error = refused(capsys, eval_knn.main, *arguments, "--data_path", images)
    assert "only in train ['n02'], only in val ['n09']" in error
