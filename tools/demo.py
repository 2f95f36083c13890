"""`make demo`: draw synthetic data, train one small ViT with CLS and one with LaSt, measure both, make one picture.

Everything goes through the commands that real data go through: lazy_train.py, evaluate_patch_hit.py,
compare_models.py. The numbers are of synthetic images and printed as they come out.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from last_vit.command_line import command_parser
from last_vit.data.synthetic import SyntheticObjects, write_imagenet

FOLDER = Path("output/demo")
DATA = FOLDER / "synthetic"
CONFIG = "cls_pretrain/configs/demo_synthetic.py"
NUM_CLASSES, NUM_TRAIN, NUM_VAL = 10, 3000, 500
MAX_ITER = 400
RUNS = {"demo_cls": ("CLS", "model.pool=cls"), "demo_last": ("LaSt K=8", "model.pool=last")}


def draw_data() -> None:
    """Synthetic images with boxes, in ImageNet's layout."""
    for split, num_images in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        samples = SyntheticObjects(num_images, split, image_size=64, num_classes=NUM_CLASSES, seed=0)
        write_imagenet(samples, DATA)


def train_both() -> None:
    """Train the two models side by side, one thread each, with one progress bar each."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    processes, bars = {}, {}
    for position, (run, (title, pooling)) in enumerate(RUNS.items()):
        log = open(FOLDER / f"{run}.log", "w")  # noqa: SIM115 (the child writes to it)
        command = ["cls_pretrain/lazy_train.py", "--config-file", CONFIG, pooling]
        options = [f"train.output_dir={FOLDER / run}", f"train.max_iter={MAX_ITER}"]
        processes[run] = subprocess.Popen(
            [sys.executable, *command, *options], stdout=log, stderr=subprocess.STDOUT, env=environment
        )
        bars[run] = tqdm(total=MAX_ITER, desc=f"train {title:<9}", unit="it", position=position)
    try:
        while any(process.poll() is None for process in processes.values()):
            time.sleep(0.5)
            for run, bar in bars.items():
                show_progress(FOLDER / run / "metrics.json", bar)
    finally:
        for run, bar in bars.items():
            processes[run].terminate()
            show_progress(FOLDER / run / "metrics.json", bar)
            bar.close()
    for run, process in processes.items():
        if process.returncode:
            sys.exit(f"training {run} failed:\n" + "\n".join((FOLDER / f"{run}.log").read_text().splitlines()[-15:]))


def show_progress(metrics: Path, bar: tqdm) -> None:
    """Move a bar to a run's last logged iteration."""
    lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []  # what follows the last "\n" is unfinished
    steps = [step for step in map(json.loads, lines) if "total_loss" in step]  # evaluations have lines of their own
    if steps:
        bar.n = steps[-1]["iteration"] + 1
        bar.set_postfix(loss=f"{steps[-1]['total_loss']:.2f}")


def run_tool(*arguments: str) -> str:
    """Run one of our commands quietly and return what it printed; show that if it fails."""
    done = subprocess.run([sys.executable, "-W", "ignore", *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{arguments[0]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def main(argv: Sequence[str] | None = None) -> None:
    """The whole demo; no arguments but --help."""
    command_parser("demo.py", __doc__).parse_args(argv)
    start = time.perf_counter()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    draw_data()
    train_both()
    measured = ["--imagenet-root", str(DATA)]
    for run, (title, _) in RUNS.items():
        measured += ["--model", f"{title}={CONFIG}@{FOLDER / run / 'model_final.pth'}"]
    loading = ["--num-workers", "0", "--batch-size", "100"]
    names = ["--max-box-area", "none", "--dataset-name", "synthetic", "--output", "demo"]
    table = run_tool("visualization/evaluate_patch_hit.py", *measured, *loading, *names)
    run_tool("visualization/compare_models.py", *measured, "--figure", str(FOLDER / "demo.png"))
    print(f"\nSynthetic images ({NUM_CLASSES} classes, {NUM_VAL} validation images), percent:\n{table}")
    print(f"picture: {FOLDER / 'demo.png'}")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
