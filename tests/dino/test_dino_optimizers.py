"""Schedules and per-tensor clipping (golden), parameter groups, the teacher's average, the frozen layer, LARS."""

import numpy as np
import torch
from dino_optimizers import (
    Lars,
    build_optimizer,
    clip_each_gradient,
    cosine_schedule,
    drop_last_layer_gradients,
    move_teacher,
    parameter_groups,
    temperature_schedule,
)
from dino_parts import golden, tiny_network
from torch import nn


def test_golden_schedules():
    vectors = {name: tensor.numpy() for name, tensor in golden("dino_schedules").items()}
    np.testing.assert_allclose(cosine_schedule(1e-3, 1e-6, 12, 7, 3), vectors["lr"], rtol=1e-12)
    np.testing.assert_allclose(cosine_schedule(0.04, 0.4, 12, 7), vectors["wd"], rtol=1e-12)
    np.testing.assert_allclose(cosine_schedule(0.996, 1.0, 12, 7), vectors["mom"], rtol=1e-12)
    np.testing.assert_allclose(temperature_schedule(0.04, 0.07, 3, 10), vectors["temps"], rtol=1e-12)


def test_schedules_of_a_warm_up_and_nothing_else_or_none():
    assert cosine_schedule(1.0, 0.1, 2, 10, 2)[[0, -1]].tolist() == [0.0, 1.0]
    assert temperature_schedule(0.04, 0.07, 0, 3).tolist() == [0.07] * 3


def parameters_with(gradients):
    parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    return parameters


def test_clipping_golden():
    vectors = golden("dino_clip")
    parameters = parameters_with([vectors[f"g{i}"] for i in range(4)])
    clip_each_gradient([*parameters, nn.Parameter(torch.zeros(1))], 1.0)
    for i, parameter in enumerate(parameters):
        torch.testing.assert_close(parameter.grad, vectors[f"c{i}"], atol=1e-6, rtol=0)


def test_parameter_groups():
    network = tiny_network(norm_last_layer=False)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    decayed, plain = ([names[id(p)] for p in group["params"]] for group in parameter_groups(network))
    assert {"backbone.cls_token", "backbone.pos_embed", "head.last_layer.weight_g", "head.last_layer.weight_v"} <= set(
        decayed
    )
    assert all(name.endswith("weight") or "cls" in name or "pos" in name or "last" in name for name in decayed)
    assert all(name.endswith(".bias") or "norm" in name for name in plain)
    assert len(decayed) + len(plain) == len(names)
    groups = parameter_groups(tiny_network())
    assert len(groups[0]["params"]) == len(decayed) - 1, "a frozen weight_g is in no group"
    assert groups[1]["weight_decay"] == 0.0


def test_teacher_is_the_average_of_parameters_and_keeps_its_buffers():
    torch.manual_seed(0)
    teacher, student = (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for _ in range(2))
    student[1].running_mean.fill_(7.0)
    expected = [0.9 * t + 0.1 * s for t, s in zip(teacher.parameters(), student.parameters(), strict=True)]
    move_teacher(teacher, student, 0.9)
    for parameter, value in zip(teacher.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter, value)
    assert not teacher[1].running_mean.any()
    move_teacher(teacher, student, 0.0)
    torch.testing.assert_close(teacher[0].weight, student[0].weight)


def test_frozen_last_layer():
    network = tiny_network(norm_last_layer=False)
    network(torch.randn(2, 1, 3, 32, 32)).sum().backward()
    drop_last_layer_gradients(network)
    without = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert without == {"head.last_layer.weight_g", "head.last_layer.weight_v"}


def test_lars_by_hand():
    """v = 0.9 v + eta |w| / |g + wd w| (g + wd w); w -= lr v; vectors are neither decayed nor scaled."""
    torch.manual_seed(0)
    matrix, vector = parameters_with([torch.randn(3, 4), torch.randn(4)])
    with torch.no_grad():
        matrix.normal_()
    optimizer = Lars([matrix, vector], lr=0.5, weight_decay=0.1, eta=0.01)
    w, v, mu = matrix.detach().double().clone(), vector.detach().double().clone(), [0.0, 0.0]
    for _ in range(2):
        g = matrix.grad.double() + 0.1 * w
        mu = [0.9 * mu[0] + 0.01 * w.norm() / g.norm() * g, 0.9 * mu[1] + vector.grad.double()]
        w, v = w - 0.5 * mu[0], v - 0.5 * mu[1]
        optimizer.step()
    torch.testing.assert_close(matrix.detach().double(), w, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(vector.detach().double(), v, atol=1e-6, rtol=1e-6)
    assert optimizer.state[matrix].keys() == {"mu"}


def test_optimizers_by_name():
    for name, kind in (("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD), ("lars", Lars)):
        assert isinstance(build_optimizer(name, parameter_groups(tiny_network())), kind)
    assert build_optimizer("sgd", parameter_groups(tiny_network())).param_groups[0]["momentum"] == 0.9
