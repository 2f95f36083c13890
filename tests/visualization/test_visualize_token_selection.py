"""visualize_token_selection.py: its records and maps are those of the votes, which have a test of their own."""

from itertools import product

import evaluate_patch_hit
import numpy as np
import pytest
import torch
import visualize_token_selection
from diagnostic_parts import BOXES, FOLDER, IMAGENET, LAST, MASKS, VIT, read_by_hand
from measured_models import models_of
from vote_statistics import VoteStatistics

from last_vit.pooling import last_select, vote_count


def by_hand(text: str, k: int, chosen=range(8)) -> VoteStatistics:
    statistics, images = VoteStatistics((4, 4)), read_by_hand(text)
    for image in (images[index] for index in chosen):
        votes = vote_count(last_select(image.tokens[None], k, variant="paper" if text == LAST else "release"), 16)
        statistics.update(votes, image.front[None], image.known[None])
    return statistics


def test_a_record_and_a_map_per_model_and_k(call, capsys):
    flags = [*MASKS, "--dataset-name", "mini", "--k", "1", "3", "0.5"]
    records = call(visualize_token_selection, *flags, models=(VIT, LAST))
    panels = call.figures["results/token_selection.png"].axes[: len(records)]
    cases = product(((VIT, "release"), (LAST, "paper")), ((1, 1), (3, 3), (0.5, 8)))
    for record, panel, ((text, variant), (asked, k)) in zip(records, panels, cases, strict=True):
        expected = by_hand(text, k)
        shown = panel.images[0].get_array().flatten()
        np.testing.assert_allclose(shown, 16 * expected.frequency().flatten(), atol=1e-9)
        assert record["dataset"] == f"mini, 64 px, masks, votes of K = {k} of 16"
        metrics = expected.compute()
        assert record["n_images"] == metrics.pop("num_images") == 8
        assert (record["config"]["k"], record["config"]["variant"]) == (asked, variant)
        assert record["metrics"] == pytest.approx(metrics, abs=1e-3)
    printed = capsys.readouterr().out
    assert "8 of 16" in printed
    assert "8 of 8 images; inside: over the 6 that show both object and background" in printed


def test_images_are_drawn_by_seed(call):
    """The same for every model."""
    flags = [*MASKS, "--num-images", "2", "--seed", "2", "--table"]
    records = call(visualize_token_selection, *flags, models=(VIT, LAST))
    assert [(record["row"], record["table"]) for record in records] == [("ViT", "votes"), ("LaSt", "votes")]
    chosen = torch.randperm(8, generator=torch.Generator().manual_seed(2))[:2].sort().values.tolist()
    for record, text in zip(records, (VIT, LAST), strict=True):
        metrics = by_hand(text, 1, chosen).compute()
        assert metrics.pop("num_images") == 2
        assert record["metrics"] == pytest.approx(metrics, abs=1e-3)


def test_imagenet_root_finds_images_and_boxes(call, here, capfd):
    (found,) = call(visualize_token_selection, *IMAGENET)
    assert found["dataset"] == "imagenet/val, 64 px, boxes, votes of K = 1 of 16"
    (plain,) = call(visualize_token_selection, *BOXES)
    (masks,) = call(visualize_token_selection, *IMAGENET, "--masks", "masks")
    assert found["metrics"] == plain["metrics"] == masks["metrics"]  # the masks are filled boxes
    assert "masks" in masks["dataset"]
    (here / "bare").mkdir()
    (here / "bare/val").symlink_to(here / "imagenet/val")
    (record,) = call(visualize_token_selection, "--imagenet-root", "bare")
    assert "votes_inside" not in record["metrics"]
    assert "no XML boxes beside" in capfd.readouterr().err


def test_checkpoint_goes_to_the_model_that_names_none(call):
    (apart,) = call(visualize_token_selection, *FOLDER, "--checkpoint", "vit.pth", models=("timm:test_vit",))
    (together,) = call(visualize_token_selection, *FOLDER)
    assert all(apart[key] == together[key] for key in ("metrics", "checkpoint_sha256"))
    assert apart["config"]["checkpoint"] == "vit.pth"


def test_the_releases_command_names_no_model():
    """A ViT-B/16 by torchvision, 500 images and K = 1, as its script; what it measures is tested with Point-in-Box."""
    command = ["--checkpoint", "ViT_190k.pth", "--imagenet-root", "imagenet", "--batch-size", "32"]
    for script in (evaluate_patch_hit, visualize_token_selection):
        args = script.main.build_parser().parse_args(command)
        (model,) = models_of(args)
        assert (model.spec, model.checkpoint, model.pool) == ("torchvision:vit_b_16", "ViT_190k.pth", None)
    assert (args.k, args.num_images, args.batch_size) == ([1], 500, 32)
