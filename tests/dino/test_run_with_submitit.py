"""The Slurm launcher: flags told apart, the job's parameters, errors, and two tasks of submitit's local executor."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import run_with_submitit
import torch
from dino_parts import arguments
from run_with_submitit import job_parameters, main, parse_command

from last_vit.data.synthetic import SyntheticObjects, write_imagenet

REPO = Path(__file__).resolve().parents[2]


def test_training_flags_are_passed_on_and_job_flags_are_not():
    words = (
        "--nodes 4 --arch vit_base --ngpus=2 --output_dir /shared/%j --dist_url=env:// --bf16 --lr 0.001 --use_volta32"
    )
    args, rest = parse_command(words.split())
    assert (args.nodes, args.ngpus, args.arch, args.bf16, args.output_dir) == (4, 2, "vit_base", True, "/shared/%j")
    assert rest == ["--arch", "vit_base", "--bf16", "--lr", "0.001"]


def test_abbreviations_are_refused(capsys):
    """They would be read here and handed on as well."""
    with pytest.raises(SystemExit):
        parse_command(["--ngpu", "4"])
    assert "--ngpu" in capsys.readouterr().err


def test_job_parameters():
    args, _ = parse_command(["--partition", "gpu", "--use_volta32", "--comment", "deadline"])
    assert job_parameters(args) == {
        "name": "dino", "nodes": 2, "tasks_per_node": 8, "timeout_min": 2800, "gpus_per_node": 8, "cpus_per_task": 10,
        "mem_gb": 320, "slurm_signal_delay_s": 120, "slurm_partition": "gpu", "slurm_constraint": "volta32gb",
        "slurm_comment": "deadline",
    }  # fmt: skip
    assert not any(name.startswith("slurm_part") for name in job_parameters(parse_command([])[0]))


def test_a_stopped_job_is_queued_again_under_another_meeting():
    pytest.importorskip("submitit")
    job = run_with_submitit.Training("main_dino.py", ["--arch", "vit_tiny"], "out")
    again = job.checkpoint().function
    assert (again.words, again.output_dir) == (job.words, job.output_dir)
    assert again.meeting != job.meeting, "a file that processes have met at cannot be used twice"


def test_without_submitit(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main([]) == 2
    assert "needs submitit: pip install submitit" in capsys.readouterr().err


def test_bad_flags_and_no_slurm(monkeypatch, capsys, tmp_path):
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    assert main(["--epochs", "3"]) == 2
    assert "--warmup_epochs is 10 and --epochs 3" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "")
    assert main(["--output_dir", "out"]) == 2
    assert "sbatch" in capsys.readouterr().err


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
    checkpoint = torch.load(tmp_path / "run" / "checkpoint.pth", weights_only=True)
    assert checkpoint["epoch"] == 1
    assert "2 processes x 2 images" in logs
    assert not list((tmp_path / "run").glob(".*_init"))
