"""visualize_token_selection.py against loops channel by channel, and its maps."""

import evaluate_patch_hit
import numpy as np
import pytest
import torch
import visualize_token_selection
from diagnostic_parts import BOXES, FOLDER, IMAGENET, LAST, MASKS, VIT, read_by_hand
from measured_models import models_of

from last_vit.pooling import stability


def by_hand(text: str, k: int, variant: str, chosen=range(8)) -> tuple[np.ndarray, float, float]:
    """Votes per position, and the share of votes and patches inside, channel by channel."""
    position, inside, front_patches, patches, counted = np.zeros(16), 0, 0, 0, 0
    images = read_by_hand(text)
    for image in (images[index] for index in chosen):
        score = stability(image.tokens[None], variant=variant)[0].numpy()
        votes = np.zeros(16)
        for channel in range(score.shape[1]):
            for patch in np.argsort(-score[:, channel], kind="stable")[:k]:
                votes[patch] += 1
        position += votes
        front = image.front.numpy()
        if 0 < front.sum() < 16:
            inside, counted = inside + votes[front].sum(), counted + votes.sum()
            front_patches, patches = front_patches + front.sum(), patches + 16
    return position / position.sum(), 100 * inside / counted, 100 * front_patches / patches


@pytest.mark.parametrize(("text", "variant"), [(VIT, "release"), (LAST, "paper")])
def test_numbers_against_loops(call, text, variant, capsys):
    flags = [*MASKS, "--dataset-name", "mini", "--k", "1", "3", "0.5"]
    records = {record["config"]["k"]: record for record in call(visualize_token_selection, *flags, models=(text,))}
    panels = call.figures["results/token_selection.png"].axes
    for asked, k, panel in zip((1, 3, 0.5), (1, 3, 8), panels, strict=False):
        frequency, inside, uniform = by_hand(text, k, variant)
        np.testing.assert_allclose(panel.images[0].get_array().flatten(), 16 * frequency, atol=1e-9)
        record = records[asked]
        assert record["dataset"] == f"mini, 64 px, masks, votes of K = {k} of 16"
        assert (record["n_images"], record["config"]["variant"]) == (8, variant)
        metrics = record["metrics"]
        assert metrics["votes_inside"] == pytest.approx(inside, abs=1e-3)
        assert metrics["votes_inside_uniform"] == pytest.approx(uniform, abs=1e-3)
        assert metrics["votes_lift"] == pytest.approx(inside / uniform, abs=1e-3)
        assert metrics["position_peak"] == pytest.approx(16 * frequency.max(), abs=1e-3)
        assert metrics["num_object_images"] == 6
    printed = capsys.readouterr().out
    assert "8 of 16" in printed
    assert "8 of 8 images; inside: over the 6 that show both object and background" in printed


def test_images_are_drawn_by_seed(call):
    """A row of maps per model; the same images again for the same seed."""
    flags = [*MASKS, "--num-images", "2", "--seed", "2", "--table"]
    records = call(visualize_token_selection, *flags, models=(VIT, LAST))
    assert {(record["row"], record["table"]) for record in records} == {("ViT", "votes"), ("LaSt", "votes")}
    chosen = torch.randperm(8, generator=torch.Generator().manual_seed(2))[:2].sort().values.tolist()
    by_row = {record["row"]: record["metrics"] for record in records}
    for name, text, variant in (("ViT", VIT, "release"), ("LaSt", LAST, "paper")):
        _, inside, uniform = by_hand(text, 1, variant, chosen)
        assert by_row[name]["votes_inside"] == pytest.approx(inside, abs=1e-3)
        assert by_row[name]["votes_inside_uniform"] == pytest.approx(uniform, abs=1e-3)


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
