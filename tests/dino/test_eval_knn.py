"""k-NN classification: against a float64 search written out by hand, in blocks, cached, and under torchrun."""

import shutil
import subprocess
import sys
from pathlib import Path

import eval_knn
import frozen_features
import knn_search
import numpy as np
import pytest
import torch
from frozen_parts import COLOURS, MODEL, REPO, results, run_two, write_colours, write_run
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
        nearest = np.argsort(-similarity)[:k]
        votes = {}
        for i in nearest:
            votes[int(bank_labels[i])] = votes.get(int(bank_labels[i]), 0.0) + np.exp(similarity[i] / temperature)
        ranked = sorted(votes, key=votes.get, reverse=True)
        hits += (ranked[0] == label, label in ranked[:5])
    return 100 * hits / len(queries)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
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


@pytest.mark.parametrize("block_bytes", [60_000, 600_000])
def test_the_block_is_bounded_by_its_argument(block_bytes):
    """Nothing as large as the bank, or as all similarities, is made; only blocks of the size that was asked for."""
    data = clusters(num_queries=300, num_bank=20_000)
    bank = data[2]
    transposed = bank.numel() * 4  # of the view queries @ bank.T: no memory
    with Largest() as watch:
        knn_search.find_nearest(data[0], bank, data[3], 5, block_bytes)
    assert block_bytes // 2 < watch.bytes <= block_bytes
    assert watch.bytes < min(transposed, 300 * 20_000 * 4)


def test_classes_without_votes_are_no_hits():
    """Two neighbours of classes 3 and 5; the label, 4, must not slip in among the five best of ten classes."""
    bank = torch.eye(4)
    queries = F.normalize(torch.tensor([[1.0, 0.5, 0.0, 0.0]]), dim=1)
    bank_labels = torch.tensor([3, 5, 4, 4])

    def score(label):
        return knn_search.knn_accuracy(queries, torch.tensor([label]), bank, bank_labels, 10, (2,), 0.07)

    assert [score(label)["knn_2_top5"] for label in range(10)] == [0, 0, 0, 100, 0, 100, 0, 0, 0, 0]
    assert [score(label)["knn_2"] for label in (3, 5)] == [100, 0]


@pytest.mark.parametrize("temperature", [1e-4, 1e4])
def test_extreme_temperatures(temperature):
    """Towards 0 the nearest decides, towards infinity the majority; nothing overflows."""
    data = clusters()
    found = knn_search.knn_accuracy(*data, 7, (1, 25), temperature)
    nearest = data[3][(data[0] @ data[2].T).topk(25).indices]
    winner = nearest[:, 0] if temperature < 1 else nearest.mode(dim=1).values
    if temperature < 1:
        assert found["knn_25"] == pytest.approx(100 * (winner == data[1]).double().mean().item())
        assert found["knn_25"] == found["knn_1"]
    expected = by_hand(*data, 7, 25, temperature) if temperature > 1 else None
    assert expected is None or found["knn_25"] == pytest.approx(expected[0])


@pytest.mark.parametrize("rows", [1, 2, 3, 8192])
def test_shares_are_put_together_in_order(monkeypatch, rows):
    """Three processes' shares of 11 rows (3, 4 and 4), sent so many rows at a time."""
    whole = torch.arange(22.0).reshape(11, 2)
    shares = [whole[0:3], whole[3:7], whole[7:11]]
    calls = iter(range(99))

    def all_gather(own):
        start = next(calls) * rows
        parts = [share[start : start + len(own)] for share in shares]
        parts = [F.pad(part, (0, 0, 0, len(own) - len(part)), value=-1) for part in parts]
        assert torch.equal(own[: len(shares[0][start:])], parts[0][: len(shares[0][start:])])
        return parts

    monkeypatch.setattr(loaders, "world_size", lambda: 3)
    monkeypatch.setattr(frozen_features, "world_size", lambda: 3)
    monkeypatch.setattr(frozen_features, "all_gather", all_gather)
    monkeypatch.setattr(frozen_features, "_ROWS", rows)
    assert torch.equal(frozen_features.gather_rows(shares[0], 11), whole)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_colours(tmp_path_factory.mktemp("colours"), train=9, val=3)


@pytest.fixture
def run(written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "checkpoint.pth")

    def call(*flags, weights="checkpoint.pth", data=written, ks=("1", "4")):
        arguments = [*MODEL, "--pretrained_weights", str(weights), "--data_path", str(data), "--nb_knn", *ks]
        eval_knn.main([*arguments, "--num_workers", "0", "--device", "cpu", *flags])
        return results()["knn_" + Path(weights).stem if "--output" not in flags else flags[-1]]

    return call


def hand_features(images, vit, size=32, resize=37):
    """Shorter side, centre crop, bicubic, class token after the norm, length 1; as (features, labels)."""
    transform = transforms.Compose(
        [
            transforms.Resize(resize, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    paths = sorted(images.rglob("*.png"))
    stack = torch.stack([transform(Image.open(path)) for path in paths])
    with torch.no_grad():
        tokens = vit(stack)
    return F.normalize(tokens, dim=1), torch.tensor([sorted(COLOURS).index(path.parent.name) for path in paths])


def test_the_whole_script_against_dinos_steps(run, written, capsys):
    record = run("--batch_size_per_gpu", "4")
    vit = parse_model_argument("dino:vit_mini/8@checkpoint.pth").load().model
    data = (*hand_features(written / "val", vit), *hand_features(written / "train", vit))
    for k in (1, 4):
        assert record["metrics"][f"knn_{k}"] == pytest.approx(by_hand(*data, 3, k, 0.07)[0], abs=1e-3)
        assert record["metrics"][f"knn_{k}_top5"] == pytest.approx(by_hand(*data, 3, k, 0.07)[1], abs=1e-3)
    assert record["metrics"]["knn_4"] > 60  # colours are separable, chance is 33 %
    assert (record["n_images"], record["config"]["num_bank_images"]) == (9, 27)
    assert record["dataset"] == f"{written.name} val, 32 px"
    assert (record["config"]["input_resize"], record["config"]["input_interpolation"]) == (37, "bicubic")
    assert "top-1" in capsys.readouterr().out


def test_the_student_has_other_features(run):
    teacher = run("--dump_features", "teacher")
    student = run("--dump_features", "student", "--checkpoint_key", "student")
    first, second = (torch.load(f"{name}/train.pth")["features"] for name in ("teacher", "student"))
    assert not torch.allclose(first, second, atol=1e-2)
    assert teacher["checkpoint_sha256"] == student["checkpoint_sha256"]


def test_a_model_trained_with_last_is_read_as_trained(run, tmp_path):
    write_run(tmp_path / "recorded.pth", "last", 0.5)
    recorded = run("--dump_features", "a", weights="recorded.pth")
    assert recorded["config"]["pooling"] == {"pool": "last", "top_k": 0.5, "variant": "release", "sigma": None}
    asked = run("--pooling", "last", "--top_k", "0.5", "--dump_features", "b")
    run("--dump_features", "c")
    last, same, cls = (torch.load(f"{name}/val.pth")["features"] for name in "abc")
    assert torch.equal(last, same)
    assert not torch.allclose(last, cls, atol=1e-2)
    assert asked["config"]["pooling_source"] == "asked for"


@pytest.mark.parametrize("weights", ["released.pth", "random"])
def test_released_backbones_and_the_random_control(run, tmp_path, weights):
    vit = parse_model_argument("dino:vit_mini/8@checkpoint.pth").load().model
    torch.save(vit.state_dict(), tmp_path / "released.pth")
    record = run("--image_size", "32", weights=weights)
    if weights == "random":
        assert record["checkpoint_sha256"] is None
        assert record["config"]["weights"] == "random, seed 0"
    else:
        assert record["metrics"] == run()["metrics"]


@pytest.mark.parametrize("arch", ["resnet18", "xcit_nano_12_p16"])
def test_backbones_that_pool_in_their_own_way(run, arch):
    record = run("--arch", arch, "--image_size", "64", weights="random")
    assert record["dataset"].endswith("64 px")
    assert record["config"]["pooling"] == {"pool": "host"}


def test_the_cache_gives_the_same_and_needs_no_pass(run, monkeypatch):
    computed = run("--dump_features", "cache", "--row", "tiny")
    monkeypatch.setattr("frozen_features.extract_features", None)
    cached = run("--load_features", "cache")
    assert cached["metrics"] == computed["metrics"]
    assert (computed["table"], computed["row"], cached["table"]) == ("knn", "tiny", None)
    assert (computed["config"]["cached_features"], cached["config"]["cached_features"]) == (False, True)
    assert not list(Path("cache").glob(".*"))


@pytest.mark.parametrize(
    ("flags", "change", "match"),
    [
        ([], "weights", "weights"),
        (["--resize", "40"], None, "input_resize 37 there, 40 here"),
        (["--image_size", "24"], None, "input_crop 32 there, 24 here"),
        (["--pooling", "mean"], None, "pooling"),
        (["--checkpoint_key", "student"], None, "checkpoint_key teacher there, student here"),
        ([], "fewer", "num_images 27 there, 26 here"),
        ([], "other", "files_and_labels"),
        ([], "damaged", "truncated, corrupt"),
        ([], "foreign", "no cache of --dump_features"),
        ([], "missing", "no checkpoint file at cache/train.pth"),
    ],
)
def test_a_cache_of_something_else_is_refused(run, written, tmp_path, capsys, flags, change, match):
    run("--dump_features", "cache")
    data, path, images = written, Path("cache/train.pth"), tmp_path / "images"
    if change in ("fewer", "other"):
        data = Path(shutil.copytree(written, images))
        first = images / "train" / "n01" / "train_0.png"
        first.unlink() if change == "fewer" else first.rename(first.with_name("train_00.png"))
    if change == "weights":
        write_run(tmp_path / "checkpoint.pth", seed=7)
    if change == "damaged":
        path.write_bytes(path.read_bytes()[:5000])
    if change == "foreign":
        torch.save({"state": 1}, path)
    if change == "missing":
        path.unlink()
    with pytest.raises(SystemExit) as stop:
        run("--load_features", "cache", *flags, data=data)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert match in error
    assert "Traceback" not in error


def test_two_processes_equal_one(run, written):
    alone = run("--dump_features", "one", ks=("1", "20"))
    arguments = [*MODEL, "--pretrained_weights", "checkpoint.pth", "--data_path", str(written), "--nb_knn", "1", "20"]
    run_two("eval_knn.py", *arguments, "--dump_features", "two", "--output", "two", "--batch_size_per_gpu", "5")
    two = results()["two"]
    assert two["metrics"] == alone["metrics"]
    assert (two["n_images"], two["num_processes"]) == (9, 2)
    for split in ("train", "val"):  # k = 20 is more than a process's share, 13 of 27
        first, second = (torch.load(f"{name}/{split}.pth")["features"] for name in ("one", "two"))
        torch.testing.assert_close(first, second, atol=1e-5, rtol=0)
    run_two("eval_knn.py", *arguments, "--load_features", "one", "--output", "three")
    assert results()["three"]["metrics"] == alone["metrics"]


@pytest.mark.parametrize(
    ("flags", "more", "match"),
    [
        ([], {"data": "nowhere"}, "nowhere does not exist"),
        ([], {"weights": "missing.pth"}, "missing.pth"),
        ([], {"ks": ("1", "28")}, "--nb_knn 28 is more than the 27 training images"),
        (["--temperature", "0"], {}, "--temperature must be positive"),
        (["--dump_features", "a", "--load_features", "a"], {}, "one of them"),
        (["--checkpoint_key", "model"], {}, "has no entry 'model'; it holds student, teacher"),
        (["--arch", "vit_nope"], {}, "'vit_nope' is not supported"),
        (["--arch", "vit_tiny"], {}, "does not fit"),
        (["--patch_size", "16"], {}, "does not fit"),
        (["--image_size", "36"], {}, "must be a multiple of --patch_size 8, got 36"),
        (["--resize", "20"], {}, "--resize must not be smaller"),
        (["--top_k", "3"], {}, "for pool 'last'"),
        (["--pooling", "last", "--top_k", "17"], {}, "17"),
        (["--device", "tpu"], {}, "device must be"),
    ],
)
def test_one_line_for_every_mistake(run, capsys, flags, more, match):
    with pytest.raises(SystemExit) as stop:
        run(*flags, **more)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert match in error
    assert error.startswith("eval_knn.py: error: ")
    assert "Traceback" not in error


def test_splits_of_different_classes(run, written, tmp_path, capsys):
    images = Path(shutil.copytree(written, tmp_path / "images"))
    (images / "val" / "n02").rename(images / "val" / "n09")
    with pytest.raises(SystemExit):
        run(data=images)
    assert "only in train ['n02'], only in val ['n09']" in capsys.readouterr().err


def test_damaged_weights(run, tmp_path, capsys):
    content = torch.load("checkpoint.pth")
    content["teacher"]["backbone.norm.bias"][3] = float("nan")
    torch.save(content, "nan.pth")
    with pytest.raises(SystemExit):
        run(weights="nan.pth")
    assert "NaN or infinite" in capsys.readouterr().err


def shell(*arguments):
    """tools/eval_knn_imagenet.sh with `echo` in place of python."""
    return subprocess.run(
        ["bash", str(REPO / "tools" / "eval_knn_imagenet.sh"), *map(str, arguments)],
        env={"PATH": "/usr/bin:/bin", "RUN": "echo"},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("layout", ["", "ILSVRC/Data/CLS-LOC"])
def test_the_imagenet_script(tmp_path, layout):
    root, weights = tmp_path / "image net", tmp_path / "weights.pth"
    for arguments in ([], [root], [root, weights], ["--arch", "vit_base"]):
        assert shell(*arguments).returncode == 2
    weights.touch()
    assert "no train/ in" in shell(root, weights).stderr
    for label in range(1000):
        (root / layout / "train" / f"n{label}").mkdir(parents=True)
    done = shell(root, weights, "--arch", "vit_base")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(
        f"--data_path {root} --dataset_name ImageNet-1k --pretrained_weights {weights} --arch vit_base\n"
    )
    (root / layout / "train" / "n5").rmdir()
    assert "has 999 classes" in shell(root, weights).stderr


def test_help_needs_no_torch():
    block = "import sys; sys.modules['torch'] = None; import eval_knn; eval_knn.main(['--help'])"
    for name in ("eval_knn", "eval_linear", "visualize_attention"):
        done = subprocess.run(
            [sys.executable, "-c", block.replace("eval_knn", name)], capture_output=True, text=True,
            cwd=REPO / "dino",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "--pretrained_weights" in done.stdout
