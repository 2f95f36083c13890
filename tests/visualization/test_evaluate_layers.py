"""evaluate_layers.py: the other commands' numbers, loops by hand, and norms planted in a host."""

from contextlib import nullcontext

import evaluate_layers
import evaluate_patch_hit
import numpy as np
import object_discovery
import pytest
import torch
from coarse_seg import CoarseSegmentation
from diagnostic_parts import IMAGENET, IMAGES, LAST, MASKS, RESNET, VIT, read_by_hand
from layer_statistics import LayerScores, LayerStatistics, find_truth
from layer_tokens import layer_tokens

from last_vit.boxes import box_iou, resize_crop_box
from last_vit.models import parse_model_argument
from last_vit.patch_scores import patch_score
from last_vit.pooling import last_pool, last_select, vote_count


@pytest.mark.parametrize(("rule", "models"), [("release", (LAST,)), ("center", (VIT, LAST, RESNET))])
def test_the_final_layer_is_point_in_boxs(call, rule, models):
    """Every model, all boxes and small ones, with both references; the batch is no matter."""
    expected = [
        call(evaluate_patch_hit, *IMAGENET, "--hit-rule", rule, "--max-box-area", area, models=models)
        for area in ("none", "0.25")
    ]
    flags = [*IMAGENET, "--hit-rule", rule]
    records = call(evaluate_layers, *flags, models=models)
    if rule == "center":
        alone = call(evaluate_layers, *flags, "--batch-size", "1", models=models)
        assert [each["metrics"] for each in alone] == [each["metrics"] for each in records]
        assert [each["by_layer"] for each in alone] == [each["by_layer"] for each in records]
    for large, small, record in zip(*expected, records, strict=True):
        found = record["metrics"]
        for what in ("", "_random", "_center", "_max"):
            assert found[f"point_in_box{what}"] == pytest.approx(large["metrics"][f"point_in_box{what}"], abs=1e-3)
            assert found[f"point_in_box_small{what}"] == pytest.approx(
                small["metrics"][f"point_in_box{what}"], abs=1e-3
            )
        assert record["by_layer"][-1]["point_in_box"] == pytest.approx(found["point_in_box"], abs=0.01)
        assert found.get("acc1") == large["metrics"].get("acc1")
        assert record["n_images"] == 6
    assert [len(record["by_layer"]) for record in records] == [1 if model == RESNET else 7 for model in models]


@torch.inference_mode()
def test_layers_and_read_outs_against_a_loop(call, capsys):
    """AUROC pair by pair, at a block and at the end, of the read-out, the class token and the norm; votes of all."""
    flags = [*MASKS, "--top-k", "2", "1.0", "--figure", "l.png"]
    _, record = call(evaluate_layers, *flags, models=(VIT, LAST))
    rows, metrics, images = record["by_layer"], record["metrics"], read_by_hand(LAST)
    wanted = {(layer, kind): [] for layer in (2, -1) for kind in ("", "_cls", "_norm")}
    for image in images:
        tokens = layer_tokens(image.model, image.sample["image"][None])
        for layer, (patches, cls) in {
            2: (tokens.layers[2], tokens.all_tokens[2][:, 0]),
            -1: (image.output.patch_tokens, image.output.cls_token),
        }.items():
            own = last_pool(patches, 3, variant="paper")
            scores = {"": patch_score(patches, own), "_cls": patch_score(patches, cls), "_norm": patches.norm(dim=2)}
            for kind, (score,) in scores.items():
                gaps = (score[image.front][:, None] - score[image.known & ~image.front]).sign()
                wanted[layer, kind] += [50 * (gaps + 1).mean()] if gaps.numel() else []
    for (layer, kind), each in wanted.items():
        assert rows[layer][f"auroc{kind}"] == pytest.approx(np.mean(each), abs=0.02)
    coarse = CoarseSegmentation("union")
    for image in images:
        above = (image.score > image.score.mean()).reshape(4, 4).repeat_interleave(16, 0).repeat_interleave(16, 1)
        coarse.update(above[None], image.sample["foreground"], image.sample["foreground"])
    assert metrics["jaccard"] == pytest.approx(coarse.compute()["miou"], abs=1e-3)
    assert metrics["jaccard_votes_1.0"] == 0, "nothing is above its mean"
    for what in ("votes_inside_1.0", "point_in_box_votes_1.0"):
        assert metrics[what] == pytest.approx(metrics["point_in_box_random"], abs=1e-3), "K = N is uniform"
    assert metrics["auroc_votes_1.0"] == 50
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines].count("final norm") == 2
    assert "CLS" in "".join(line for line in lines if line.startswith("after"))
    panel = call.figures["l.png"].axes[0]
    assert [
        (line.get_label(), line.get_linestyle()) for line in panel.lines if not line.get_label().startswith("_")
    ] == [("ViT", "-"), ("LaSt", "-"), ("random patch", "--"), ("image centre", "-.")]


@pytest.mark.parametrize("name", ["test_vit2", "test_vit3"])
def test_a_learned_read_out_is_none_of_blocks(name):
    """The first takes the mean, the second an attention pool."""
    trained = parse_model_argument(f"timm:{name}@random").load(64)
    with (
        nullcontext() if name == "test_vit2" else pytest.raises(ValueError, match=r"learned pool .AttentionPoolLatent")
    ):
        LayerScores(trained, [1], torch.device("cpu"))


def test_boxes_are_those_of_object_discovery(call):
    (record,) = call(evaluate_layers, *IMAGENET, "--top-k", "2")
    hits = {"": [], "_votes_2": [], "_product_2": []}
    for image, (*_, boxes) in zip(read_by_hand(VIT), [IMAGES[i] for i in (0, 3, 6, 1, 4, 7, 2, 5)], strict=True):
        if len(boxes) != 1:
            continue
        own = resize_crop_box(torch.tensor(boxes), image.sample["image_hw"][None], 72, 64).clamp(0, 64)
        votes = vote_count(last_select(image.tokens[None], 2), 16)[0]
        from_0 = (image.score - image.score.min()) / (image.score.max() - image.score.min())
        for what, score in (("", image.score), ("_votes_2", votes), ("_product_2", from_0 * votes)):
            mask = object_discovery.patch_score_mask(score, (4, 4), "largest").mask
            drawn = torch.tensor([object_discovery.patch_box(mask, 16, (64, 64))], dtype=torch.float64)
            hits[what].append(float(box_iou(drawn, own)) >= 0.5)
    for what, each in hits.items():
        assert record["metrics"][f"corloc{what}"] == pytest.approx(100 * np.mean(each), abs=1e-3)


def test_planted_norms_are_found_and_located(here):
    """Two patches of 16, one in the box, from the third block on."""
    trained = parse_model_argument(VIT).load(64, 72)
    planted = torch.ones(1, 17, 1)
    planted[:, [1 + 0, 1 + 5]] = 1e4
    trained.model.blocks[2].register_forward_hook(lambda module, args, output: output * planted)
    box = {"box_xyxy": torch.tensor([[16.0, 16.0, 48.0, 32.0]]), "image_hw": torch.tensor([[72, 72]])}
    scores = LayerScores(trained, [1], torch.device("cpu"))
    truth, statistics = find_truth(box, (4, 4), trained.preprocessing, "center"), LayerStatistics(scores)
    with torch.inference_mode():
        statistics.update(*scores(layer_tokens(trained.model, torch.rand(1, 3, 64, 64))), truth, 64)
    metrics, rows, num_images = statistics.compute()
    assert [row["high_norm_share"] for row in rows[:3]] == [0, 0, 12.5]
    assert (rows[2]["high_norm_inside"], rows[2]["high_norm_chance"], num_images) == (50, 12.5, 1)
    assert (metrics["high_norm_share"], metrics["high_norm_block"]) == (12.5, 3)
    assert (metrics["high_norm_share_inside"], metrics["high_norm_share_outside"]) == (50, pytest.approx(100 / 14))
