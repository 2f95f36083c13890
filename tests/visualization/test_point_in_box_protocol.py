"""evaluate_patch_hit.py against a loop written out by hand, for one model and for several, on every kind of images."""

from pathlib import Path

import evaluate_patch_hit
import point_in_box_protocol
import point_in_box_table
import pytest
import torch
from diagnostic_parts import BOXES, IMAGENET, IMAGES, RESNET, SMALL, VIT, read_by_hand
from patch_norms import PatchNorms

from last_vit import last_pool, patch_score
from last_vit.metrics import box_patch_mask
from last_vit.models import load_trained_model

ANY_BOX = ["--max-box-area", "none"]
CONFIG = """
from detectron2.config import LazyCall as L
from torchvision.models import VisionTransformer
model = L(VisionTransformer)(
    image_size=32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3
)
"""
PLAIN = {"pool": "last", "top_k": 1, "variant": "release", "sigma": None}


def by_hand(token: str, hit_rule: str, max_area: float) -> tuple[float, float, int, dict]:
    """Point-in-Box and top-1 of the ViT, image by image, and the norms of the images that count."""
    hits, right, norms = [], [], PatchNorms()
    for image, path in zip(read_by_hand(VIT), sorted(Path("imagenet/val").rglob("*.png")), strict=True):
        width, height, boxes = IMAGES[int(path.stem)]
        if len(boxes) != 1:
            continue
        x1, y1, x2, y2 = boxes[0]
        if (x2 - x1) * (y2 - y1) >= max_area * width * height:
            continue
        query = {
            "trained": image.output.global_token[0],
            "cls": image.output.cls_token[0],
            "mean": image.tokens.mean(dim=0),
            "last": last_pool(image.tokens[None], top_k=1)[0],
        }[token]
        peak = patch_score(image.tokens[None], query[None]).argmax()
        corners = torch.tensor(boxes, dtype=torch.float32)
        mask = box_patch_mask(corners, torch.tensor([[height, width]]), (4, 4), 64, 72, hit_rule)
        norms.update(image.norm[None])
        hits.append(bool(mask[0, peak]))
        right.append(int(image.output.logits.argmax()) == int(path.parent.name[2:]))
    return 100 * sum(hits) / len(hits), 100 * sum(right) / len(right), len(hits), norms.compute()


@pytest.mark.parametrize(
    ("token", "hit_rule", "area"), [("trained", "release", "0.25"), ("mean", "center", "none"), ("cls", "release", "1")]
)
def test_numbers_against_a_loop(call, token, hit_rule, area, capsys):
    flags = ["--global-token", token, "--hit-rule", hit_rule, "--max-box-area", area]
    (record,) = call(evaluate_patch_hit, *IMAGENET, *flags)
    expected, acc1, num_images, norms = by_hand(token, hit_rule, 9.9 if area == "none" else float(area))
    assert (record["metrics"]["point_in_box"], record["n_images"]) == (pytest.approx(expected, abs=1e-3), num_images)
    assert record["metrics"]["acc1"] == pytest.approx(acc1, abs=1e-3)
    assert record["metrics"]["outlier_share"] == pytest.approx(norms["outlier_share"], abs=1e-4)
    assert record["metrics"]["high_norm"] == norms["high_norm"]
    assert record["config"]["norm_cutoff"] == pytest.approx(norms["cutoff"])
    assert {"point_in_box_random", "point_in_box_center", "point_in_box_max", "acc5"} <= record["metrics"].keys()
    words = {"none": "any box", "1": "box < 100 %", "0.25": "box < 25 %"}[area]
    assert record["dataset"] == f"imagenet val, 64 px, {words}, {hit_rule} rule, {token} token"
    assert record["config"]["left_out"]["several objects"] == 1
    printed = capsys.readouterr().out
    words = (f"{expected:.2f}", "random patch", "image centre", "attainable", "several objects")
    assert all(word in printed for word in words)


def test_norms_without_spread_only_cost_the_flag(call, monkeypatch, capsys):
    monkeypatch.setattr("point_in_box_protocol.token_norms", lambda tokens: torch.zeros(tokens.shape[:2]))
    (record,) = call(evaluate_patch_hit, *IMAGENET, *ANY_BOX)
    assert "high_norm" not in record["metrics"]
    assert "no high-norm flag: half of the patches have a norm below" in capsys.readouterr().out


def test_several_models_stand_in_one_table(call, monkeypatch, capsys):
    """One pass each, and the numbers of each alone; the former name of the command does the same."""
    passes = []
    read = point_in_box_protocol.layer_tokens
    monkeypatch.setattr(point_in_box_protocol, "layer_tokens", lambda *args: passes.append(len(args[1])) or read(*args))
    records = call(point_in_box_table, *IMAGENET, *ANY_BOX, "--table", models=(VIT, RESNET))
    assert passes == [3, 3] * 2
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()[3:]]  # behind those about the records
    rows = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert rows[0][:4] == ["model", "high norm", "outliers %", "Point-in-Box"]
    assert [(row[0], row[7] == "-", row[8]) for row in rows[1:3]] == [("ViT", False, "6"), ("ResNet", True, "6")]
    assert rows[5][0].startswith("imagenet val, any box, release rule, trained token; percent; left out: ")
    assert {(record["row"], record["table"]) for record in records} == {(n, "point_in_box") for n in ("ViT", "ResNet")}
    (alone,) = call(evaluate_patch_hit, *IMAGENET, *ANY_BOX)
    (twin,) = (record for record in records if record["row"] == "ViT")
    assert all(alone[key] == twin[key] for key in ("metrics", "dataset", "config", "n_images"))
    assert alone["table"] is None


def test_a_folder_with_boxes_gives_the_same_as_imagenets_layout(call):
    """But for top-1, which needs labels."""
    (layout,) = call(evaluate_patch_hit, *IMAGENET)
    (folder,) = call(evaluate_patch_hit, *BOXES, "--dataset-name", "folder")
    assert folder["metrics"] == {key: value for key, value in layout["metrics"].items() if not key.startswith("acc")}
    assert folder["n_images"] == layout["n_images"]
    assert folder["dataset"] == layout["dataset"].replace("imagenet val", "folder")
    assert folder["config"]["left_out"]["large box"] == layout["config"]["left_out"]["large box"] == 1


@pytest.fixture
def release(here) -> dict:
    """tiny.py, and weights of it in the released trainer's layout, which record no pooling."""
    pytest.importorskip("detectron2")
    Path("tiny.py").write_text(CONFIG)
    model = load_trained_model("tiny.py", None, random_seed=0).model
    torch.nn.init.normal_(model.heads.head.weight)
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    content = {"model": weights, "trainer": {}, "iteration": 189_999}
    torch.save(content, "ViT_190k.pth")
    return content


def pooling_of(call, *flags: str) -> dict:
    size = [*SMALL, "--image-size", "32", "--resize", "36", *IMAGENET, "--checkpoint", "ViT_190k.pth"]
    (record,) = call(evaluate_patch_hit, *flags, models=("tiny.py",), size=size)
    return record["config"]["pooling"]


def test_pooling_is_asked_for_recorded_configured_or_as_released(call, release, capsys):
    assert pooling_of(call) == PLAIN
    recorded = {"pool": "last", "top_k": 3, "variant": "paper", "sigma": None}
    torch.save({**release, "pooling": recorded}, "ViT_190k.pth")
    assert pooling_of(call) == recorded
    assert pooling_of(call, "--top-k", "0.5") == {**recorded, "top_k": 0.5}
    assert pooling_of(call, "--pool", "mean")["pool"] == "mean"
    wrapper = "from classification_net import ClassificationNet as N\nmodel = L(N)(model=vit, pool='mean')\n"
    Path("tiny.py").write_text(CONFIG.replace("model = L(", "vit = L(") + wrapper)
    torch.save(release, "ViT_190k.pth")
    assert pooling_of(call)["pool"] == "mean"  # nothing recorded: the config's
    torch.save({**release, "pooling": {"pool": "host"}}, "ViT_190k.pth")
    with pytest.raises(SystemExit):
        pooling_of(call)
    assert "records the host's own read-out" in capsys.readouterr().err
    assert pooling_of(call, "--opts", "model.pool=host") == {"pool": "host"}
    for option, words in (("model.model.num_layers=2", "missing"), ("model.nope=1", "unknown override key")):
        with pytest.raises(SystemExit):
            pooling_of(call, "--opts", option)
        assert words in capsys.readouterr().err


def test_the_extra_token_has_what_is_recorded_or_asked_for(call, release, monkeypatch):
    used = []
    count = point_in_box_protocol.count_patch_hits
    monkeypatch.setattr("point_in_box_protocol.count_patch_hits", lambda *args: used.append(args[7]) or count(*args))
    torch.save({**release, "pooling": {"pool": "last", "top_k": 3, "variant": "paper", "sigma": 2.5}}, "ViT_190k.pth")
    pooling_of(call, "--global-token", "last")
    pooling_of(call, "--global-token", "last", "--top-k", "0.5", "--variant", "release")
    assert [(pool.top_k, pool.sigma, pool.variant) for pool in used] == [(3, 2.5, "paper"), (0.5, 2.5, "release")]
