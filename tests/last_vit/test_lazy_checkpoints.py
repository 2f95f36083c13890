"""A run's checkpoints without a run: what a file holds, what is refused, and what a resumed run takes from where."""

import pytest
import torch
from torch import nn

from last_vit.checkpoint import load_strict, read_checkpoint
from last_vit.lazy.checkpoints import RunCheckpoints


class Trainer:
    """What `RunCheckpoints` asks of detectron2's."""

    def __init__(self, model, lr):
        self.iter = 0
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.5)

    def state_dict(self):
        return {"iteration": self.iter, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state):
        self.iter = state["iteration"]
        self.optimizer.load_state_dict(state["optimizer"])


@pytest.fixture
def run(tmp_path):
    """-> (model, trainer, checkpoints) in one folder, however often it is called."""

    def build(lr=0.1):
        model = nn.Linear(2, 1)
        trainer = Trainer(model, lr)

        def load(path):
            content = read_checkpoint(path)
            load_strict(model, content["model"])
            return content

        return model, trainer, RunCheckpoints(model, tmp_path, trainer, {"pooling": "last"}, load)

    return build


def step(model, trainer):
    model(torch.ones(1, 2)).sum().backward()
    trainer.optimizer.step()


def test_the_last_one_is_resumed_with_the_configs_options(run):
    model, trainer, checkpoints = run()
    for trainer.iter in range(3):
        step(model, trainer)
        checkpoints.save(f"model_{trainer.iter}", iteration=trainer.iter)
    other, resumed, again = run(lr=0.01)
    assert again.resume() == 3
    assert again.get_checkpoint_file().endswith("model_2.pth")
    assert torch.equal(other.weight, model.weight)
    moments = [
        one.optimizer.state[next(of.parameters())]["exp_avg"] for one, of in ((trainer, model), (resumed, other))
    ]
    assert torch.equal(*moments)
    group = resumed.optimizer.param_groups[0]
    assert (group["lr"], group["initial_lr"], group["weight_decay"]) == (0.01, 0.01, 0.5)


def test_what_a_file_holds(run, tmp_path):
    run()[2].save("model_final", iteration=7)
    assert set(read_checkpoint(tmp_path / "model_final.pth")) == {"model", "trainer", "iteration", "pooling"}
    assert {path.name for path in tmp_path.iterdir()} == {"model_final.pth", "last_checkpoint"}
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_an_empty_folder_starts_at_zero(run):
    checkpoints = run()[2]
    assert checkpoints.get_checkpoint_file() == ""
    assert checkpoints.resume() == 0


def test_weights_that_are_not_finite_replace_nothing(run, tmp_path):
    model, _, checkpoints = run()
    checkpoints.save("model_0")
    good = (tmp_path / "model_0.pth").read_bytes()
    nn.init.constant_(model.bias, float("nan"))
    for name in ("model_0", "model_1"):
        with pytest.raises(FloatingPointError, match="bias"):
            checkpoints.save(name)
    assert (tmp_path / "model_0.pth").read_bytes() == good
    assert {path.name for path in tmp_path.iterdir()} == {"model_0.pth", "last_checkpoint"}
