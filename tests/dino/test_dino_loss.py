"""DINO's head and loss: golden values with the centre, key names, the pairs written out in float64, gradients."""

import pytest
import torch
from dino_head import DinoHead
from dino_loss import DinoLoss
from dino_optimizers import temperature_schedule
from dino_parts import golden, tiny_network
from torch import nn
from torch.nn import functional as F


def test_golden_head():
    head = DinoHead(48, 96, hidden_dim=64, bottleneck_dim=32)
    state = golden("dino_head_state")
    assert list(head.state_dict()) == list(state)
    head.load_state_dict(state)
    vectors = golden("dino_vit")
    with torch.no_grad():
        torch.testing.assert_close(head(vectors["native_forward"]), vectors["head_out"], atol=1e-5, rtol=0)


def test_initial_values():
    torch.manual_seed(0)
    head = DinoHead(192, 128)
    assert head.mlp[2].weight.shape == (2048, 2048)
    assert head.mlp[2].weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not head.mlp[4].bias.any()
    assert torch.equal(head.last_layer.weight_g, torch.ones(128, 1))
    bound = 256**-0.5  # torch's own for a Linear
    assert bound * 0.95 < head.last_layer.weight_v.abs().max() <= bound


class Counter(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.batches = inner, []

    def forward(self, x):
        self.batches.append(tuple(x.shape))
        return self.inner(x)


def test_one_backbone_pass_per_size_and_one_head_pass():
    network = tiny_network().eval()
    crops = [torch.randn(2, 3, side, side) for side in (32, 32, 16, 16, 16)]
    with torch.no_grad():
        expected = torch.cat([network.head(network.backbone(crop)) for crop in crops])
        network.backbone, network.head = Counter(network.backbone), Counter(network.head)
        torch.testing.assert_close(network(crops), expected, atol=1e-5, rtol=1e-5)
    assert network.backbone.batches == [(4, 3, 32, 32), (6, 3, 16, 16)]
    assert network.head.batches == [(10, 48)]


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
    assert list(loss.state_dict()) == ["center"]
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
