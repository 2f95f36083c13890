"""DINO's head: golden output, key names, initial values, batch norm, the frozen length of the prototypes."""

import pytest
import torch
from dino_head import DinoHead, WeightNormedLinear
from dino_parts import golden


def test_golden():
    head = DinoHead(48, 96, hidden_dim=64, bottleneck_dim=32)
    state = golden("dino_head_state")
    assert list(head.state_dict()) == list(state)
    head.load_state_dict(state)
    vectors = golden("dino_vit")
    with torch.no_grad():
        torch.testing.assert_close(head(vectors["native_forward"]), vectors["head_out"], atol=1e-5, rtol=0)


def test_batch_norm_shifts_the_keys_as_in_dino():
    names = {
        name.rsplit(".", 1)[0] for name in DinoHead(8, 4, use_bn=True, hidden_dim=8, bottleneck_dim=4).state_dict()
    }
    assert names == {"mlp.0", "mlp.1", "mlp.3", "mlp.4", "mlp.6", "last_layer"}


def test_initial_values():
    torch.manual_seed(0)
    head = DinoHead(192, 128)
    assert head.mlp[2].weight.shape == (2048, 2048)
    assert head.mlp[2].weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not head.mlp[4].bias.any()
    assert torch.equal(head.last_layer.weight_g, torch.ones(128, 1))
    bound = 256**-0.5  # torch's own for a Linear
    assert bound * 0.95 < head.last_layer.weight_v.abs().max() <= bound


@pytest.mark.parametrize("train_norm", [False, True])
def test_weight_norm(train_norm):
    layer = WeightNormedLinear(6, 5, train_norm).double()
    with torch.no_grad():
        layer.weight_g.uniform_(0.5, 2)
    x = torch.randn(3, 6, dtype=torch.float64)
    v = layer.weight_v
    expected = x @ (layer.weight_g * v / v.pow(2).sum(1, keepdim=True).sqrt()).T
    torch.testing.assert_close(layer(x), expected)
    torch.nn.utils.vector_to_parameters(torch.nn.utils.parameters_to_vector(layer.parameters()), layer.parameters())
    assert [p.requires_grad for p in layer.parameters()] == [train_norm, True]
    if train_norm:
        assert torch.autograd.gradcheck(lambda g, v: torch._weight_norm(v, g, 0), (layer.weight_g, layer.weight_v))
