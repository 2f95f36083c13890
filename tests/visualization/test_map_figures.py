"""compare_models.py and visualize_votes.py: what is drawn is what the model computes."""

import compare_models
import pytest
import torch
import visualize_votes
from diagnostic_parts import BOXES, FOLDER, IMAGENET, LAST, MASKS, RESNET, SIZE, VIT, read_by_hand
from foreground_images import ForegroundImages
from map_figures import view_scores, view_votes
from measured_models import vote_selections

from last_vit import last_select, vote_count
from last_vit.evaluation import eval_transform
from last_vit.models import parse_model_argument

CPU = torch.device("cpu")


def load(text: str, **objects: str):
    """The argument, the model, and its images."""
    argument = parse_model_argument(text)
    trained = argument.load(64, 72)
    return argument, trained, ForegroundImages("imagenet/val", eval_transform(trained.preprocessing), **objects)


def test_scores_are_what_the_model_computes(here):
    _, trained, images = load(LAST, masks="masks")
    chosen = [0, 2, 7]
    view = view_scores("LaSt", trained, images, chosen, CPU, trained.selection())
    assert view.titles == ("patch score", "votes, K = 3 of 16")
    exact = read_by_hand(LAST)
    for row, index in enumerate(chosen):
        torch.testing.assert_close(view.scores[row].flatten(), exact[index].score)
        votes = vote_count(last_select(exact[index].tokens[None], 3, variant="paper"), 16)
        assert torch.equal(view.votes[row].flatten(), votes[0])
        column, line = (view.peaks_xy[row] / 16).long().tolist()
        assert view.scores[row, line, column] == view.scores[row].max()
        assert view.peaks_on[row] == images[index]["foreground"][16 * line + 8, 16 * column + 8]
    front = [is_front for index in chosen for is_front in exact[index].front.tolist()]
    inside = sum(count for count, is_front in zip(view.votes.flatten().tolist(), front, strict=True) if is_front)
    on_objects = f"{100 * inside / int(view.votes.sum()):.0f} % on objects"
    peaks = f"on an object: {int((view.peaks_on == 1).sum())} of 3"
    assert view.counts == (peaks, f"{on_objects},\n{100 * sum(front) / len(front):.0f} % of the patches")


def test_all_models_vote_with_one_k(here):
    """A model without a K of its own takes that of its neighbour, and no more patches than it has."""
    _, trained, images = load(VIT)
    last = load(LAST)[1]
    assert [pool.top_k for pool in vote_selections([trained, last])] == [3, 3]
    assert vote_selections([trained])[0].top_k == 1
    for top_k, k in ((3, 3), (0.5, 8), (17, 16)):
        view = view_scores("ViT", trained, images, [0], CPU, trained.selection(top_k))
        assert view.titles[1] == f"votes, K = {k} of 16"
        votes = vote_count(last_select(read_by_hand(VIT)[0].tokens[None], k), 16)
        assert torch.equal(view.votes[0].flatten(), votes[0])
        assert view.counts == ("", "")


@pytest.mark.parametrize(
    ("text", "top_k", "variant", "title"),
    [
        (VIT, 1, "release", "ViT: votes, K = 1 (the model is not pooled with LaSt)"),
        (LAST, 3, "paper", "LaSt: votes, K = 3"),
    ],
)
def test_votes_are_what_the_selection_gives(here, text, top_k, variant, title):
    argument, trained, images = load(text, masks="masks")
    chosen, exact = [0, 2, 5], read_by_hand(text)
    view = view_votes(argument, trained, images, chosen, CPU)
    assert view.title == title
    for row, index in enumerate(chosen):
        votes = vote_count(last_select(exact[index].tokens[None], top_k, variant=variant), 16)[0].tolist()
        assert view.votes[row].flatten().tolist() == votes
        shown = [[vote > level * max(votes) for vote in votes] for level in (0.5, 0.3, 0.2)]
        assert view.above[row].flatten(1).tolist() == shown
        for weights, caption in zip([*shown, votes], view.captions[row], strict=True):
            inside = sum(weight for weight, is_front in zip(weights, exact[index].front, strict=True) if is_front)
            assert caption == f"object {100 * inside / sum(weights):.0f} %"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (IMAGENET, "2 of 6 images of imagenet/val"),  # only single objects
        (BOXES, "2 of 8 images of imagenet/val"),
        ([*FOLDER, "--dataset-name", "mine"], "2 of 8 images of mine"),
    ],
)
def test_a_row_per_image_and_two_columns_per_model(call, capsys, flags, words):
    call(compare_models, *flags, "--num-images", "2", "--figure", "a.png", models=(VIT, LAST), size=SIZE)
    assert words in capsys.readouterr().out
    assert len(call.figures["a.png"].axes) == 2 * (1 + 2 * 2) + 1
    titles = [axes.get_title().strip() for axes in call.figures["a.png"].axes]
    assert titles[:5] == ["image", *["patch score", "votes, K = 3 of 16"] * 2]
    # four columns for each model of visualize_votes.py: a ResNet's 2 x 2 and a ViT's 4 x 4 patches
    assert call(visualize_votes, *MASKS, "--num-images", "2", models=(VIT, RESNET), size=SIZE) == []
    assert len(call.figures["results/votes.png"].axes) == 2 * (1 + 4 * 2)
