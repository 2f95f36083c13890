"""The Slurm launcher: flags told apart, the job's parameters, errors, and two tasks of submitit's local executor."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import run_with_submitit
import torch
from dino_parts import arguments
from run_with_submitit import job_parameters, job_parser, main

from last_vit.data.synthetic import SyntheticObjects, write_imagenet

REPO = Path(__file__).resolve().parents[2]


def test_training_flags_are_passed_on_and_job_flags_are_not():
    words = [
        "--nodes", "4", "--arch", "vit_base", "--ngpus=2", "--output_dir", "/shared/%j", "--dist_url=env://", "--bf16",
        "--use_volta32",
    ]  # fmt: skip
    args = job_parser().parse_args(words)
    assert (args.nodes, args.ngpus, args.arch, args.bf16, args.output_dir) == (4, 2, "vit_base", True, "/shared/%j")
    rest = job_parser(main_flags=False).parse_known_args(words)[1]
    assert rest == ["--arch", "vit_base", "--bf16"]


def test_job_parameters():
    args = job_parser().parse_args(["--partition", "gpu", "--use_volta32", "--comment", "deadline"])
    assert job_parameters(args) == {
        "name": "dino", "nodes": 2, "tasks_per_node": 8, "timeout_min": 2800, "gpus_per_node": 8, "cpus_per_task": 10,
        "mem_gb": 320, "slurm_signal_delay_s": 120, "slurm_partition": "gpu", "slurm_constraint": "volta32gb",
        "slurm_comment": "deadline",
    }  # fmt: skip
    assert not any(name.startswith("slurm_part") for name in job_parameters(job_parser().parse_args([])))


def test_a_stopped_job_is_queued_again_under_another_meeting():
    pytest.importorskip("submitit")
    job = run_with_submitit.Training(["--arch", "vit_tiny"], "out")
    again = job.checkpoint().function
    assert (again.words, again.output_dir) == (job.words, job.output_dir)
    assert again.meeting != job.meeting, "a file that processes have met at cannot be used twice"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "3"], "--warmup_epochs is 10 and --epochs 3"),
        (["--output_dir", "out"], "sbatch"),
        (["--ngpu", "4"], "--ngpu"),  # abbreviated, it would be read here and handed on as well
    ],
)
def test_bad_flags_and_no_slurm(words, message, monkeypatch, refused, tmp_path):
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    assert message in refused(main, *words)


def test_without_submitit(monkeypatch, refused):
    monkeypatch.setattr(run_with_submitit, "submitit", None)
    assert "needs submitit: pip install submitit" in refused(main)


def test_two_local_tasks_train_together(tmp_path):
    """The whole chain but Slurm: pickled job, ranks, meeting at a file, main_dino.py, its checkpoint."""
    pytest.importorskip("submitit")
    write_imagenet(SyntheticObjects(4, "train", image_size=32, num_classes=2), tmp_path / "images")
    words = arguments(arch="vit_mini", epochs=1, data_path="images", batch_size_per_gpu=2, local_crops_number=0)
    command = [sys.executable, str(REPO / "dino" / "run_with_submitit.py"), "--cluster", "local", "--nodes", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, "--ngpus", "2", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280
    )
    logs = "\n".join(path.read_text() for path in (tmp_path / "run").glob("*.err"))
    assert done.returncode == 0, done.stderr + logs
    assert torch.load(tmp_path / "run" / "checkpoint.pth", weights_only=True)["epoch"] == 1
    assert "2 processes x 2 images" in logs
    assert not list((tmp_path / "run").glob(".*_init"))
