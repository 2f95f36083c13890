"""The command line: DINO's 31 flags with their defaults and spellings, ours, and every refused value."""

import os
import subprocess
from pathlib import Path

import main_dino
import pytest
from dino_options import check_options
from run_with_submitit import job_parser

from last_vit.command_line import cores_at_hand

REPO = Path(__file__).resolve().parents[2]
DINO = {
    "arch": "vit_small", "patch_size": 16, "out_dim": 65536, "norm_last_layer": True, "momentum_teacher": 0.996,
    "use_bn_in_head": False, "warmup_teacher_temp": 0.04, "teacher_temp": 0.04, "warmup_teacher_temp_epochs": 0,
    "use_fp16": True, "weight_decay": 0.04, "weight_decay_end": 0.4, "clip_grad": 3.0, "batch_size_per_gpu": 64,
    "epochs": 100, "freeze_last_layer": 1, "lr": 5e-4, "warmup_epochs": 10, "min_lr": 1e-6, "optimizer": "adamw",
    "drop_path_rate": 0.1, "global_crops_scale": (0.4, 1.0), "local_crops_number": 8, "local_crops_scale": (0.05, 0.4),
    "data_path": "/path/to/imagenet/train/", "output_dir": ".", "saveckp_freq": 20, "seed": 0,
    "num_workers": cores_at_hand(),
    "dist_url": "env://", "local_rank": 0,
}  # fmt: skip
OURS = {
    "pooling": "cls", "top_k": None, "variant": "release", "global_crop_size": 224, "local_crop_size": 96,
    "accumulation_steps": 1, "bf16": False, "compile": False, "fused_pool": False,
    "skip_broken": False, "wandb": False,
}  # fmt: skip


def parse(words=""):
    return main_dino.main.build_parser().parse_args(words.split())


def test_flags_and_defaults():
    assert len(DINO) == 31
    assert vars(parse()) == {**DINO, **OURS}
    check_options(parse())


def test_booleans():
    for text, value in {"on": True, "TRUE": True, "1": True, "off": False, "false": False, "0": False}.items():
        for name in ("norm_last_layer", "use_bn_in_head", "use_fp16", "bf16", "compile"):
            assert vars(parse(f"--{name} {text}"))[name] is value


def test_a_command_of_dinos_readme():
    args = parse(
        "--arch deit_small --data_path /data/train --output_dir out --global_crops_scale 0.14 1 "
        "--local_crops_scale 0.05 0.14 --teacher_temp 0.07 --warmup_teacher_temp_epochs 30 --norm_last_layer false "
        "--optimizer sgd --bf16 --compile"
    )
    check_options(args)
    assert (args.global_crops_scale, args.norm_last_layer, args.bf16) == ([0.14, 1.0], False, True)


@pytest.mark.parametrize("recipe", sorted((REPO / "dino" / "recipes").glob("*.sh")), ids=lambda path: path.stem)
def test_recipes_are_commands_that_we_accept(recipe, tmp_path):
    """Each runs here with launchers that only print their words."""
    for launcher in ("python", "torchrun"):
        (tmp_path / launcher).write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        (tmp_path / launcher).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", str(recipe), "images", "run", "--pooling", "last", "--top_k", "0.25"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    script = next(i for i, word in enumerate(words) if word.endswith(".py"))
    assert Path(words[script]).is_file()
    args = job_parser().parse_args(words[script + 1 :])
    check_options(args)
    assert (args.data_path.split("/")[0], args.output_dir, args.pooling) == ("images", "run", "last")
    assert subprocess.run(["bash", str(recipe)], env=environment, capture_output=True, timeout=60).returncode != 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--epochs 0", "--epochs: must be at least 1, got 0"),
        ("--lr -1", "--lr: must be at least 0, got -1"),
        ("--teacher_temp 0", "--teacher_temp: must be positive, got 0"),
        ("--momentum_teacher 1.5", "--momentum_teacher: must be in [0, 1], got 1.5"),
        ("--lr fast", "--lr: invalid number value: 'fast'"),
        ("--use_fp16", "--use_fp16: expected one argument"),
        ("--use_fp16 maybe", "on, true, 1, off, false or 0, got 'maybe'"),
        ("--optimizer adam", "adamw"),
        ("--pooling max", "cls"),
        ("--nonsense 1", "--nonsense"),
    ],
)
def test_refused_by_the_parser(words, message, capsys):
    with pytest.raises(SystemExit):
        parse(words)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--epochs 5", "--warmup_epochs is 10 and --epochs 5"),
        ("--warmup_teacher_temp_epochs 101", "--warmup_teacher_temp_epochs is 101"),
        ("--local_crops_scale 0.4 0.05", "--local_crops_scale must be two shares.*got 0.4 0.05"),
        ("--pooling last", "--pooling last and --top_k belong together"),
        ("--top_k 7", "--pooling last and --top_k belong together.*--pooling cls and --top_k 7"),
        ("--accumulation_steps 65", "--accumulation_steps 65 cannot split --batch_size_per_gpu 64"),
        ("--local_crop_size 100", "--local_crop_size must be a multiple of --patch_size 16, got 100 pixels$"),
        ("--local_crop_size 8", "--local_crop_size.*got 8 pixels: the crop is smaller than a patch"),
    ],
)
def test_refused_together(words, message):
    with pytest.raises(ValueError, match=message):
        check_options(parse(words))


def test_local_crop_size_is_free_without_local_crops_and_for_convnets():
    check_options(parse("--local_crops_number 0 --local_crop_size 8"))
    check_options(parse("--arch resnet50 --local_crop_size 100"))
