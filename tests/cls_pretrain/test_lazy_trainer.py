"""The step that two tracks share, on detectron2's own loop: it repeats, stops at NaN, and counts its time."""

import pytest
import torch
from detectron2.engine import HookBase, SimpleTrainer
from torch import nn

from last_vit.lazy.trainer import RepeatableSteps


class Noisy(nn.Module):
    """Its loss is what the batch says, times a weight, times what the step draws."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, value):
        return {"loss_a": self.weight * value * (1 + torch.rand(())), "loss_b": 0.5 * self.weight.bfloat16()}


class Trainer(RepeatableSteps, SimpleTrainer):
    def backward(self, batch):
        losses = self.model(batch)
        sum(losses.values()).backward()
        return {name: value.detach() for name, value in losses.items()}, 4


def trainer_of(batches, **options):
    model = Noisy()
    return Trainer(model, batches, torch.optim.SGD(model.parameters(), lr=0.01), **options)


def test_what_a_step_draws_depends_on_seed_and_iteration_alone():
    whole, second, other = (trainer_of([1.0] * 4, seed=seed) for seed in (3, 3, 4))
    whole.train(0, 4)
    second.train(0, 2)
    torch.rand(100)  # whatever else was drawn meanwhile
    resumed = trainer_of([1.0] * 2, seed=3)
    resumed.model.load_state_dict(second.model.state_dict())
    resumed.load_state_dict(second.state_dict())
    resumed.train(resumed.iter, 4)
    other.train(0, 4)
    assert resumed.model.weight.item() == whole.model.weight.item() != other.model.weight.item()


def test_losses_are_written_as_they_are():
    trainer = trainer_of([1.0] * 3)
    trainer.train(0, 3)
    histories = trainer.storage.histories()
    latest = {name: history.latest() for name, history in histories.items()}
    assert latest["total_loss"] == pytest.approx(latest["loss_a"] + latest["loss_b"])
    assert latest["loss_b"] == pytest.approx(0.5, abs=0.1)
    assert latest["images_per_second"] > 0
    assert "data_time" in latest


def test_seconds_go_on_over_resumes():
    first = trainer_of([1.0])
    first.train(0, 1)
    assert first.seconds > 0
    second = trainer_of([1.0])
    second.load_state_dict({**first.state_dict(), "seconds": 100.0})
    second.train(1, 2)
    assert second.seconds > 100
    without = first.state_dict()
    del without["seconds"]
    second.load_state_dict(without)
    assert second.seconds == 0


@pytest.mark.parametrize(("value", "named"), [(float("nan"), "loss_a is nan"), (float("inf"), "loss_a is inf")])
def test_a_loss_that_is_not_finite_stops_the_step(value, named):
    trainer = trainer_of([1.0, value, 1.0], clip_grad_norm=9.0)
    with pytest.raises(FloatingPointError, match=f"{named} at iteration 1; nothing of it was saved"):
        trainer.train(0, 3)
    assert trainer.iter == 1


def test_a_gradient_that_is_not_finite_stops_too():
    class Steep(Noisy):
        def forward(self, value):
            return {"loss_a": torch.sqrt(self.weight - value)}  # finite at 0, its slope is not

    model = Steep()
    trainer = Trainer(model, [1.0], torch.optim.SGD(model.parameters(), lr=0.1), clip_grad_norm=1.0)
    with pytest.raises(FloatingPointError, match="gradient_norm is inf at iteration 0"):
        trainer.train(0, 1)


class Looks(HookBase):
    """Looks at the losses after every step, without waiting."""

    def __init__(self):
        self.seen = []

    def after_step(self):
        history = self.trainer.storage.histories().get("total_loss")
        self.seen.append([] if history is None else [iteration for _, iteration in history.values()])


def test_between_its_periods_losses_are_read_one_step_late():
    trainer, looks = trainer_of([1.0] * 5), Looks()
    trainer.read_periods = (3, 0)
    trainer.register_hooks([looks])
    trainer.train(0, 5)
    assert looks.seen == [[], [0], [0, 1, 2], [0, 1, 2], [0, 1, 2, 3, 4]]  # 2 ends a period, 4 the run
    every = trainer_of([1.0] * 5)
    every.train(0, 5)
    histories = [each.storage.histories()["total_loss"].values() for each in (trainer, every)]
    assert histories[0] == histories[1]


def test_a_loss_that_is_read_late_names_its_own_iteration():
    trainer, looks = trainer_of([1.0, float("nan"), 1.0, 1.0, 1.0]), Looks()
    trainer.read_periods = (5,)
    trainer.register_hooks([looks])
    with pytest.raises(FloatingPointError, match="loss_a is nan at iteration 1;"):
        trainer.train(0, 5)
    assert trainer.iter == 2
    saving = trainer_of([1.0, float("nan")])
    saving.read_periods = (2,)  # a hook would save after this step: it finds the loss before that
    saving.register_hooks([looks])
    looks.seen.clear()
    with pytest.raises(FloatingPointError, match="loss_a is nan at iteration 1;"):
        saving.train(0, 2)
    assert len(looks.seen) == 1
