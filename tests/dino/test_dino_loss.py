"""DINO's loss: golden values with the centre, the pairs written out in float64, gradients, dtypes."""

import pytest
import torch
from dino_loss import DinoLoss
from dino_parts import golden
from dino_schedules import temperature_schedule
from torch.nn import functional as F


def by_pairs(student, teacher, center, temp, num_views):
    """The definition: mean over pairs (teacher view i, student view v != i) of the batch-mean cross-entropy."""
    students = (student.double() / 0.1).chunk(num_views)
    targets = ((teacher.double() - center.double()) / temp).softmax(-1).chunk(2)
    terms = [
        -(q * F.log_softmax(s, -1)).sum(-1).mean()
        for i, q in enumerate(targets)
        for v, s in enumerate(students)
        if v != i
    ]
    return sum(terms) / len(terms), len(terms)


def test_golden_losses_and_centres():
    vectors = golden("dino_loss")
    temps = temperature_schedule(0.04, 0.07, 3, 10)
    loss = DinoLoss(96, 6)
    for i in range(4):
        teacher = vectors[f"t{i}"]
        terms = loss(vectors[f"s{i}"], teacher, temps[int(vectors[f"epoch{i}"])])
        assert terms.loss.item() == pytest.approx(vectors[f"loss{i}"].item(), abs=1e-5)
        loss.update_center(teacher.sum(0, keepdim=True), len(teacher))
        torch.testing.assert_close(loss.center, vectors[f"center{i}"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("num_views", [2, 3, 10])
def test_equals_the_pairs_written_out(num_views):
    torch.manual_seed(0)
    loss = DinoLoss(50, num_views)
    loss.center.normal_()
    student = torch.randn(num_views * 5, 50, requires_grad=True)
    teacher = torch.randn(2 * 5, 50)
    terms = loss(student, teacher, 0.05)
    expected, num_pairs = by_pairs(student, teacher, loss.center, 0.05, num_views)
    assert num_pairs == 2 * (num_views - 1)
    assert terms.loss.item() == pytest.approx(expected.item(), abs=1e-5)
    (gradient,) = torch.autograd.grad(terms.loss, student)
    (reference,) = torch.autograd.grad(expected, student)
    torch.testing.assert_close(gradient, reference.float(), atol=1e-6, rtol=1e-4)
    if num_views > 2:
        shares = (2 * terms.global_pairs + 2 * (num_views - 2) * terms.local_pairs) / num_pairs
        assert shares.item() == pytest.approx(terms.loss.item(), abs=1e-5)
    else:
        assert terms.local_pairs is None
        assert terms.global_pairs.item() == pytest.approx(terms.loss.item())


def test_half_precision_logits_are_compared_in_float32():
    torch.manual_seed(0)
    loss = DinoLoss(4096, 4)
    student, teacher = torch.randn(8, 4096).bfloat16(), torch.randn(4, 4096).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        terms = loss(student, teacher, 0.04)
    assert terms.loss.dtype == torch.float32
    assert terms.loss.item() == pytest.approx(loss(student.float(), teacher.float(), 0.04).loss.item(), rel=1e-6)


def test_a_student_that_agrees_has_the_entropy_as_loss():
    """Centre 0 and equal temperatures: cross-entropy of equal distributions is their entropy."""
    logits = torch.randn(1, 30)
    loss = DinoLoss(30, 3)(logits.expand(3, -1), logits.expand(2, -1), 0.1).loss
    p = (logits / 0.1).softmax(-1)
    assert loss.item() == pytest.approx(-(p * p.log()).sum().item(), abs=1e-5)


def test_only_the_centre_is_saved():
    assert list(DinoLoss(8, 10).state_dict()) == ["center"]


def test_one_view_is_not_enough():
    with pytest.raises(ValueError, match="at least 2 views"):
        DinoLoss(8, 1)
