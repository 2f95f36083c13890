"""compare_models.py, visualize_votes.py and explore.py: what is drawn is what the model computes."""

from pathlib import Path

import compare_models
import explore
import pytest
import torch
import visualize_votes
from diagnostic_parts import FOLDER, IMAGENET, LAST, MASKS, RESNET, SIZE, VIT, read_by_hand
from measured_models import vote_selections
from patch_pca import fit_patch_pca
from PIL import Image

from last_vit import last_select, vote_count
from last_vit.models import parse_model_argument


def shown(panel) -> torch.Tensor:
    """The map or picture of a panel."""
    return torch.from_numpy(panel.images[0].get_array().data)


def votes_of(image, k: int, variant: str) -> torch.Tensor:
    return vote_count(last_select(image.tokens[None], k, variant=variant), 16)[0]


@pytest.mark.parametrize(("texts", "k"), [((VIT, LAST), 3), ((VIT,), 1)])
def test_scores_and_votes_are_what_the_models_compute(call, capsys, texts, k):
    """A model without a K of its own votes with its neighbour's; the best patch is marked by what lies there."""
    chosen = (0, 2, 7)
    names = [path.name for path in sorted(Path("imagenet/val").rglob("*.png"))]
    flags = [*MASKS, "--only", *(names[index] for index in chosen), "--figure", "a.png"]
    call(compare_models, *flags, models=texts, size=SIZE)
    assert "3 of 8 images of imagenet/val" in capsys.readouterr().out
    axes, width = call.figures["a.png"].axes, 1 + 2 * len(texts)
    assert len(axes) == 3 * width + 1  # and the colour bar
    titles = [panel.get_title().strip() for panel in axes[:width]]
    assert titles == ["image", *["patch score", f"votes, K = {k} of 16"] * len(texts)]
    for model, text in enumerate(texts):
        images, found, inside, whole, area = read_by_hand(text), [], 0, 0, 0
        for row, index in enumerate(chosen):
            score, votes = axes[width * row + 1 + 2 * model : width * row + 3 + 2 * model]
            torch.testing.assert_close(shown(score).flatten(), images[index].score)
            by_hand = votes_of(images[index], k, "paper" if text == LAST else "release")
            assert torch.equal(shown(votes).flatten(), by_hand)
            (best,) = score.lines
            x, y = (int(place[0]) for place in best.get_data())
            assert images[index].score[y // 16 * 4 + x // 16] == images[index].score.max()
            found.append(int(images[index].sample["foreground"][y, x]))
            assert best.get_marker() == {1: "o", 0: "D"}[found[-1]]
            front = images[index].front
            inside, whole, area = (
                inside + int(by_hand[front].sum()),
                whole + int(by_hand.sum()),
                area + int(front.sum()),
            )
        assert score.get_xlabel() == f"on an object: {sum(found)} of 3"
        words = f"{100 * inside / whole:.0f} % on objects,\n{100 * area / 48:.0f} % of the patches"
        assert votes.get_xlabel() == words


def test_all_models_vote_with_one_k(here):
    vit, last = (parse_model_argument(text).load(64, 72) for text in (VIT, LAST))
    assert [pool.top_k for pool in vote_selections([vit, last])] == [3, 3]
    assert vote_selections([vit])[0].top_k == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (IMAGENET, "2 of 6 images of imagenet/val"),  # only single objects
        ([*FOLDER, "--dataset-name", "mine"], "2 of 8 images of mine"),
    ],
)
def test_images_of_every_kind(call, capsys, flags, words):
    call(
        compare_models,
        *flags,
        "--num-images",
        "2",
        "--figure",
        "a.png",
        models=(RESNET, LAST.replace("=3", "=9")),
        size=SIZE,
    )
    assert words in capsys.readouterr().out
    # of a K that is another model's no more patches than there are
    assert call.figures["a.png"].axes[2].get_title() == "\nvotes, K = 4 of 4"


@pytest.mark.parametrize(
    ("text", "k", "variant", "title"),
    [
        (VIT, 1, "release", "ViT: votes, K = 1 (the model is not pooled with LaSt)"),
        (LAST, 3, "paper", "LaSt: votes, K = 3"),
    ],
)
def test_votes_are_what_the_selection_gives(call, text, k, variant, title):
    call(visualize_votes, *MASKS, "--num-images", "2", models=(text, RESNET), size=SIZE)
    axes = call.figures["results/votes.png"].axes
    assert len(axes) == 2 * (1 + 4 * 2)
    assert axes[1].texts[0].get_text() == title
    chosen = torch.randperm(8, generator=torch.Generator().manual_seed(0))[:2].sort().values.tolist()
    for row, image in enumerate(read_by_hand(text)[index] for index in chosen):
        votes, side = votes_of(image, k, variant), torch.arange(4) * 16 + 8
        panels = axes[9 * row + 1 : 9 * row + 5]
        kept = [votes > level * votes.max() for level in (0.5, 0.3, 0.2)]
        picture = shown(axes[9 * row])
        assert torch.equal(shown(panels[-1]).flatten(), votes)
        for weights, panel in zip([*kept, votes], panels, strict=True):
            assert panel.get_xlabel() == f"object {100 * weights[image.front].sum() / weights.sum():.0f} %"
        for mask, panel in zip(kept, panels, strict=False):
            grey = 0.35 * picture.mean(dim=2, keepdim=True)
            expected = torch.where(mask.view(4, 4)[..., None], picture[side][:, side], grey[side][:, side])
            assert torch.allclose(shown(panel)[side][:, side], expected)


def test_any_photo_is_explored_as_the_diagnostics_measure_it(call, monkeypatch):
    monkeypatch.setattr("map_figures._BATCH_SIZE", 1)
    Image.open("imagenet/val/n00/0.png").save("photo.png")
    Path("text.jpg").touch()
    call(explore, "photo.png", "imagenet/val/n01/1.png", models=(VIT, LAST), size=SIZE)
    assert list(call.figures) == ["output/explore/photo.png", "output/explore/1.png"]
    axes = call.figures["output/explore/photo.png"].axes
    for row, text in enumerate((VIT, LAST)):
        found = read_by_hand(text)[0]
        votes = votes_of(found, 3 if row else 1, "paper" if row else "release")
        picture, *maps, colors = (shown(panel) for panel in axes[5 * row : 5 * row + 5])
        for values, expected in zip(maps, (found.score, votes, found.norm), strict=True):
            torch.testing.assert_close(values.flatten(), expected)
        torch.testing.assert_close(colors.flatten(0, 1), fit_patch_pca(found.tokens).rgb(found.tokens))
        assert picture.shape == (64, 64, 3)
    with pytest.raises(SystemExit):
        explore.main(["photo.png", "text.jpg", "--model", VIT])
