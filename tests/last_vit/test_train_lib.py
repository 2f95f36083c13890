"""What trainings share: steps repeat, stop at NaN and count their time; checkpoints are whole and resumed as asked."""

import pytest
import torch
from detectron2.engine import HookBase, SimpleTrainer
from torch import multiprocessing, nn

from last_vit.checkpoint import load_strict, read_checkpoint
from last_vit.late_scalars import LateScalars
from last_vit.train_lib import RepeatableSteps, RunCheckpoints, average_gradients, micro_batches, with_own_options

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_late_scalars_hold_the_values_of_then(device):
    values = torch.tensor([1.5, float("nan")], device=device)
    late = LateScalars(("loss", "norm"), values)
    values.zero_()
    assert late["loss"] == 1.5
    assert late["norm"] != late["norm"]


@NEEDS_GPU
def test_a_look_does_not_wait_for_later_work():
    late = LateScalars(("x",), torch.ones(1, device="cuda"))
    torch.cuda._sleep(2_000_000_000)  # cycles: about a second
    assert late["x"] == 1.0
    assert not torch.cuda.current_stream().query()
    torch.cuda.synchronize()


def test_micro_batches_cover_the_batch():
    found = list(micro_batches(nn.Identity(), 3, (torch.arange(5), torch.arange(5, 10))))
    assert [(one.tolist(), two.tolist()) for (one, two), _ in found] == [
        ([0, 1], [5, 6]), ([2, 3], [7, 8]), ([4], [9]),
    ]  # fmt: skip
    assert [share for _, share in found] == [0.4, 0.4, 0.2]


def _averaging_worker(rank, init_file, results):
    torch.distributed.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=2)
    for compression in ("none", "fp16", "bf16"):
        model = nn.Linear(64, 1, bias=False)
        parallel = average_gradients(model, compression)
        parallel(torch.linspace(1, 2 + rank, 64)).sum().backward()
        if rank == 0:
            results.put((compression, model.weight.grad[0].tolist()))
    torch.distributed.destroy_process_group()


def test_gradients_are_averaged_exactly_or_in_half_the_bytes(tmp_path):
    results = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(_averaging_worker, (str(tmp_path / "init"), results), nprocs=2)
    found = {name: torch.tensor(values) for name, values in (results.get() for _ in range(3))}
    halves = [torch.linspace(1, 2 + rank, 64) / 2 for rank in range(2)]
    assert torch.equal(found["none"], sum(halves))
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        assert torch.equal(found[name], sum(half.to(dtype) for half in halves).float())
        assert not torch.equal(found[name], found["none"])


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


def trainer_of(batches, lr=0.01, **options):
    model = Noisy()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=lr)
    return Trainer(model, batches, optimizer, **options)


def run_of(folder, batches, lr=0.01, **options):
    """-> a trainer and its checkpoints."""
    trainer = trainer_of(batches, lr, **options)

    def load(path):
        content = read_checkpoint(path)
        load_strict(trainer.model, content["model"])
        return content

    return trainer, RunCheckpoints(trainer, folder, {"pooling": "last"}, load)


def test_a_resumed_run_is_the_whole_run(tmp_path):
    """What a step draws depends on seed and iteration alone."""
    whole, other = (trainer_of([1.0] * 4, seed=seed) for seed in (3, 0))
    first, saved = run_of(tmp_path, [1.0] * 2, seed=3)
    whole.train(0, 4)
    other.train(0, 4)
    first.train(0, 2)
    first.iter = 1  # as while its last hooks run
    saved.save("model_0000001", iteration=1)
    torch.rand(100)  # whatever else was drawn meanwhile
    resumed, checkpoints = run_of(tmp_path, [1.0] * 2, seed=3)
    resumed.train(checkpoints.resume(), 4)
    assert resumed.iter == 4
    assert resumed.model.weight.item() == whole.model.weight.item() != other.model.weight.item()
    assert resumed.seconds > first.seconds > 0


def test_options_are_the_configs_and_state_the_files(tmp_path):
    first, checkpoints = run_of(tmp_path, [1.0], lr=0.1)
    first.train(0, 1)
    checkpoints.save("model_final")
    other, again = run_of(tmp_path, [1.0], lr=0.01)
    again.resume()
    group = other.optimizer.param_groups[0]
    assert (group["lr"], group["initial_lr"], group["weight_decay"]) == (0.01, 0.01, 0.01)
    moments = [each.optimizer.state[each.model.weight]["momentum_buffer"] for each in (first, other)]
    assert moments[0] == moments[1] != 0
    with pytest.raises(ValueError, match=r"its optimizer holds \[1\] tensors per group, this run trains \[2\]"):
        with_own_options(torch.optim.SGD(nn.Linear(2, 1).parameters()), first.optimizer.state_dict())


def test_weights_that_are_not_finite_replace_nothing(tmp_path):
    trainer, checkpoints = run_of(tmp_path, [])
    trainer.iter = 0
    checkpoints.save("model_0")
    good = (tmp_path / "model_0.pth").read_bytes()
    nn.init.constant_(trainer.model.weight, float("nan"))
    for name in ("model_0", "model_1"):
        with pytest.raises(FloatingPointError, match="weight"):
            checkpoints.save(name)
    assert (tmp_path / "model_0.pth").read_bytes() == good
    assert {path.name for path in tmp_path.iterdir()} == {"model_0.pth", "last_checkpoint"}


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
    latest = {name: history.latest() for name, history in trainer.storage.histories().items()}
    assert latest["total_loss"] == pytest.approx(latest["loss_a"] + latest["loss_b"])
    assert latest["images_per_second"] > 0


@pytest.mark.parametrize(
    ("period", "value", "reached"),
    [(1, "inf", 1), (5, "nan", 2), (2, "nan", 1)],  # with 2 a hook would save after the bad step
)
def test_a_loss_that_is_not_finite_stops_and_names_its_iteration(period, value, reached):
    trainer, looks = trainer_of([1.0, float(value), 1.0, 1.0, 1.0], clip_grad_norm=9.0), Looks()
    trainer.read_periods = (period,)
    trainer.register_hooks([looks])
    with pytest.raises(FloatingPointError, match=f"loss_a is {value} at iteration 1; there is no checkpoint yet"):
        trainer.train(0, 5)
    assert trainer.iter == reached == len(looks.seen)


def test_a_gradient_that_is_not_finite_stops_too():
    class Steep(Noisy):
        def forward(self, value):
            return {"loss_a": torch.sqrt(self.weight - value)}  # finite at 0, its slope is not

    model = Steep()
    trainer = Trainer(model, [1.0], torch.optim.SGD(model.parameters(), lr=0.1), clip_grad_norm=1.0)
    with pytest.raises(FloatingPointError, match="gradient_norm is inf at iteration 0"):
        trainer.train(0, 1)
