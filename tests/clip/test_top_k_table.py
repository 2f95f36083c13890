"""Many poolings of one pass: every row is what its pool gives alone, for every host, and Point-in-Box of each token."""

import copy
import shutil
from pathlib import Path

import eval_zero_shot_cls
import open_clip
import pytest
import top_k_table
import torch
from clip_parts import tiny_clip, write_clip
from host_parts import IMAGES, NATIVE, TINY_TIMM
from read_outs import attach_read_outs, dense_read_outs, list_pools, own_pool
from record_parts import read_records
from timm.models.vision_transformer import VisionTransformer as TimmViT

from last_vit.data.imagenet import ImageNetDataset
from last_vit.data.synthetic import SyntheticObjects, write_imagenet
from last_vit.data.transforms import EvalTransform
from last_vit.dense import attach_last, attach_pool, dense_forward
from last_vit.metrics import PointInBox
from last_vit.patch_scores import patch_score
from last_vit.token_pool import TokenPool

CPU = ("--device", "cpu", "--num-workers", "0", "--text-cache", "cache", "--templates", "a {}")
A = "A=open_clip:clip_tiny.json@clip_tiny.pt"


POOLS = [("cls", None), ("mean", None), ("max", None), ("last", 3, None, "paper"), ("last", 0.5)]


@pytest.mark.parametrize("name", [name for name, host in NATIVE.items() if host.has_cls])
def test_every_read_out_is_that_of_the_pool_alone(name):
    torch.manual_seed(0)
    model = NATIVE[name].build().eval()
    pools = [TokenPool(*pool) for pool in POOLS]
    if name != "torchvision":
        assert own_pool(model).kind == NATIVE[name].own
    with torch.inference_mode():
        alone = []
        for pool in pools:
            single = attach_pool(copy.deepcopy(model), pool.kind, pool.top_k, variant=pool.variant or "release")
            alone.append(dense_forward(single, IMAGES))
        together = dense_read_outs(attach_read_outs(model, pools), IMAGES)
    assert len(alone) == len(together) == len(pools)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.global_token, other.global_token)
        torch.testing.assert_close(one.logits, other.logits, rtol=1e-5, atol=1e-6)  # a larger matmul
        assert torch.equal(one.patch_tokens, other.patch_tokens)
        assert one.grid_hw == other.grid_hw
    assert not torch.equal(together[0].global_token, together[1].global_token)


def test_hosts_and_pools_that_do_not_go_together():
    with pytest.raises(ValueError, match="its own way"):
        own_pool(TimmViT(**TINY_TIMM, global_pool="avgmax"))
    with pytest.raises(ValueError, match="needs a class token"):
        attach_read_outs(NATIVE["timm-no-cls"].build(), [TokenPool("mean"), TokenPool("cls")])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path)
    samples = SyntheticObjects(24, "val", image_size=40, num_classes=6)
    write_imagenet(samples, tmp_path / "drawn")
    return samples


def run(*arguments: str) -> dict[str, dict]:
    """Records of one run, by row."""
    shutil.rmtree("results", ignore_errors=True)
    names = ("--class-names", "drawn/LOC_synset_mapping.txt")
    top_k_table.main(["--imagenet-root", "drawn", *names, *CPU, "--table", *arguments])
    return {record["row"]: record for record in read_records("results")}


def test_rows_equal_runs_of_their_own(here):
    rows = run("--model", A, "--pool", "cls", "mean", "last", "--top-k", "5", "0.5", "1.0")
    labels = ["mean", *(f"last K={k}" for k in ("5", "0.5", "1.0"))]
    # as trained is cls, which is not measured again
    assert sorted(rows) == sorted(["A", *(f"A, read with {label}" for label in labels)])
    names = ("--class-names", "drawn/LOC_synset_mapping.txt")
    for label, options in {"": "", **{label: f",pool={label.replace(' K', ',top_k')}" for label in labels}}.items():
        shutil.rmtree("output", ignore_errors=True)
        eval_zero_shot_cls.main(["--imagenet-root", "drawn", *names, *CPU, "--model", A + options])
        (alone,) = read_records("output")
        row = rows[f"A, read with {label}" if label else "A"]
        assert (row["metrics"], row["dataset"]) == (alone["metrics"], alone["dataset"])
        if label:
            kind, _, k = label.partition(" K=")
            assert (row["config"]["read_out"]["pool"], str(row["config"]["read_out"]["top_k"] or "")) == (kind, k)
    accuracies = {tuple(row["metrics"].values()) for row in rows.values()}
    assert len(accuracies) > 2  # the read-outs do differ
    assert rows["A, read with last K=1.0"]["metrics"] == rows["A, read with mean"]["metrics"]


def test_read_outs_of_a_last_model_keep_its_variant():
    model = attach_last(tiny_clip(), 2, sigma=3.0, variant="paper")
    pools = list_pools(model, ["last", "cls"], [1, 2, 1.0])
    found = [(pool.kind, pool.top_k, pool.sigma, pool.variant) for pool in pools]
    assert found == [
        ("last", 2, 3.0, "paper"),
        ("last", 1, 3.0, "paper"),
        ("last", 1.0, 3.0, "paper"),
        ("cls", None, None, None),
    ]
    assert [type(pool.top_k) for pool in pools[:3]] == [int, int, float]


def test_point_in_box_of_every_token(here):
    rows = run("--model", A, "--pool", "last", "--top-k", "2", "--point-in-box", "--max-box-area", "0.4")
    images = ImageNetDataset("drawn", "val", EvalTransform(32, 32, open_clip.OPENAI_DATASET_MEAN,
        open_clip.OPENAI_DATASET_STD, "bicubic"), boxes=True)  # fmt: skip
    for row, pool in {"A": ("cls",), "A, read with last K=2": ("last", 2)}.items():
        model, metric = attach_pool(tiny_clip(), *pool), PointInBox(32, 32)
        for sample in images:
            x1, y1, x2, y2 = sample["box_xyxy"].tolist()
            if (x2 - x1) * (y2 - y1) >= 0.4 * 40 * 40:
                continue
            with torch.no_grad():
                output = dense_forward(model, sample["image"][None])
            score = patch_score(output.patch_tokens, output.global_token)
            metric.update(score, sample["box_xyxy"][None], sample["image_hw"][None], (4, 4))
        expected = metric.compute()
        found = rows[row]["metrics"]
        assert found["num_boxes"] == expected["num_images"] < 24
        for key in ("point_in_box", "point_in_box_random", "point_in_box_center", "point_in_box_max"):
            assert found[key] == pytest.approx(expected[key], abs=1e-3)
        assert rows[row]["n_images"] == 24


def test_errors_are_one_line(here, refused):
    names = ("--class-names", "drawn/LOC_synset_mapping.txt")
    for flags, message in (
        (("--imagenet-root", "drawn", "--pool", "last", "--top-k", "4", "17"), "model 'A': top_k must be in [1, 16]"),
        (("--imagenet-root", "drawn", "--max-box-area", "0"), "(0, 1]"),
        (("--images", "drawn/val", "--point-in-box"), "needs ImageNet's boxes"),
    ):
        assert message in refused(top_k_table.main, *names, *CPU, "--model", A, *flags)
    assert not Path("cache").exists()
    assert not Path("output").exists()
