"""Logits and weighted loss of the text classifier against float64, region by region."""

import math

import pytest
import torch
from fvit.text_classifier import TextClassifier
from fvit_parts import BASE, NAMES, vocabulary

IS_BASE = torch.tensor(BASE)


def plain_loss(logits, labels, weights):
    """Sum over regions of weight times cross entropy over classes that have weight, over the number of regions."""
    total = 0.0
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        if weights[label] < 1e-5:
            continue
        scores = [math.exp(value - max(row)) for value, weight in zip(row, weights, strict=True) if weight >= 1e-5]
        total += weights[label] * -math.log(math.exp(row[label] - max(row)) / sum(scores))
    return total / max(len(labels), 1)


def test_logits_are_cosines_times_temperature():
    words, features = vocabulary(), torch.randn(6, 8)
    logits = TextClassifier(words, IS_BASE, 8)(features)
    unit = features.double() / features.double().norm(dim=1, keepdim=True)
    text = torch.cat([words.embeddings, words.background[None]]).double()
    torch.testing.assert_close(logits.double(), 50 * unit @ text.T, rtol=1e-5, atol=1e-5)
    assert logits.shape == (6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(TextClassifier(words, IS_BASE, 8)(features), logits)


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.6), (1.0, 0.0, 0.9), (1.0, 1.0, 1.0), (1.0, 0.5, 0.2)])
def test_loss(weights):
    base, novel, background = weights
    classifier = TextClassifier(
        vocabulary(), IS_BASE, 8, base_weight=base, novel_weight=novel, background_weight=background
    )
    logits = torch.randn(20, 5, generator=torch.Generator().manual_seed(0)) * 5
    labels = torch.tensor([0, 1, 2, 4, 4] * 4)
    expected = plain_loss(logits, labels, [base, base, base, novel, background])
    assert classifier.loss(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_novel_classes_do_not_compete_and_add_nothing():
    classifier = TextClassifier(vocabulary(), IS_BASE, 8)
    logits = torch.randn(3, 5, requires_grad=True)
    loss = classifier.loss(logits, torch.tensor([0, 3, 4]))  # the second region is novel
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad[:, 3].abs().sum() == 0
    assert logits.grad[1].abs().sum() == 0
    assert classifier.loss(logits, torch.tensor([3, 3, 3])).item() == 0
    nothing = classifier.loss(torch.zeros(0, 5, requires_grad=True), torch.zeros(0, dtype=torch.long))
    assert nothing.item() == 0


def test_temperature_is_learned_unless_fixed():
    learned = TextClassifier(vocabulary(), IS_BASE, 8)
    assert list(learned.state_dict()) == ["temperature"]
    learned(torch.randn(2, 8)).sum().backward()
    assert learned.temperature.grad.abs() > 0
    fixed = TextClassifier(vocabulary(), IS_BASE, 8, temperature=3.0, fixed_temperature=20.0)
    features = torch.randn(2, 8)
    torch.testing.assert_close(fixed(features), fixed.cosines(features) * 20)
    assert not fixed.temperature.requires_grad
    assert fixed.state_dict().keys() == learned.state_dict().keys()


def test_another_vocabulary():
    classifier = TextClassifier(vocabulary(), IS_BASE, 8)
    classifier.set_vocabulary(vocabulary(("zebra", "cat"), seed=1), torch.tensor([False, True]))
    assert classifier.num_classes == 2
    assert classifier(torch.randn(3, 8)).shape == (3, 3)
    assert classifier.class_weights.tolist() == pytest.approx([0.0, 1.0, 0.6])


@pytest.mark.parametrize(
    ("words", "is_base", "match"),
    [
        (vocabulary(width=6), IS_BASE, "have 6 numbers"),
        (vocabulary(background=False), IS_BASE, "none for the background"),
        (vocabulary(), IS_BASE[:2], r"bool \[4\]"),
        (vocabulary(), torch.ones(4), r"bool \[4\]"),
    ],
)
def test_errors_leave_the_old_vocabulary(words, is_base, match):
    classifier = TextClassifier(vocabulary(), IS_BASE, 8)
    with pytest.raises(ValueError, match=match):
        classifier.set_vocabulary(words, is_base)
    assert classifier.num_classes == len(NAMES)


def test_labels_and_weights_out_of_range():
    classifier = TextClassifier(vocabulary(), IS_BASE, 8)
    with pytest.raises(ValueError, match=r"go from 0 to 7, the vocabulary has 4"):
        classifier.loss(torch.randn(2, 5), torch.tensor([0, 7]))
    with pytest.raises(ValueError, match="background's above 0"):
        TextClassifier(vocabulary(), IS_BASE, 8, background_weight=0.0)


def test_a_background_without_embedding_scores_zero():
    features = torch.randn(6, 8)
    with pytest.raises(ValueError, match="zero_background=True"):
        TextClassifier(vocabulary(background=False), IS_BASE, 8)
    for words in (vocabulary(background=False), vocabulary()):
        logits = TextClassifier(words, IS_BASE, 8, zero_background=True)(features)
        assert (logits[:, -1] == 0).all()
        torch.testing.assert_close(logits[:, :-1], TextClassifier(vocabulary(), IS_BASE, 8)(features)[:, :-1])
