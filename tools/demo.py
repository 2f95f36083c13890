"""`make demo`: draw synthetic data, train one small ViT with CLS and one with LaSt, measure both, make one picture.

Everything goes through the commands that real data go through: lazy_train.py, evaluate_patch_hit.py,
compare_models.py. The numbers are of synthetic images and printed as they come out.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from last_vit.command_line import command_parser
from last_vit.data.synthetic import SyntheticObjects, write_imagenet

FOLDER = Path("output/demo")
DATA = FOLDER / "synthetic"
CONFIG = "cls_pretrain/configs/demo_synthetic.py"
NUM_CLASSES, NUM_IMAGES = 10, {"train": 3000, "val": 500}
MAX_ITER = 400
RUNS = {"demo_cls": ("CLS", "model.pool=cls"), "demo_last": ("LaSt K=8", "model.pool=last")}


def train_both() -> None:
    """Train the two models side by side, one thread each, which takes most of the demo's time."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    processes = {}
    for run, (_, pooling) in RUNS.items():
        command = [sys.executable, "cls_pretrain/lazy_train.py", "--config-file", CONFIG, pooling]
        command += [f"train.output_dir={FOLDER / run}", f"train.max_iter={MAX_ITER}"]
        with open(FOLDER / f"{run}.log", "w") as log:
            processes[run] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    print(f"training {' and '.join(RUNS)}, about two minutes; they log to {FOLDER}", flush=True)
    try:
        for run, process in processes.items():
            if process.wait():
                lines = (FOLDER / f"{run}.log").read_text().splitlines()
                sys.exit(f"training {run} failed:\n" + "\n".join(lines[-15:]))
    finally:
        for process in processes.values():
            process.terminate()


def run_tool(*arguments: str) -> str:
    """What one of our commands prints; where it fails, end with what it said."""
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
    for split, number in NUM_IMAGES.items():
        write_imagenet(SyntheticObjects(number, split, image_size=64, num_classes=NUM_CLASSES, seed=0), DATA)
    train_both()
    shared = ["--imagenet-root", str(DATA)]
    for run, (title, _) in RUNS.items():
        shared += ["--model", f"{title}={CONFIG}@{FOLDER / run / 'model_final.pth'}"]
    protocol = ("--max-box-area", "none", "--dataset-name", "synthetic", "--num-workers", "0", "--batch-size", "100")
    print(run_tool("visualization/evaluate_patch_hit.py", *shared, *protocol))
    run_tool("visualization/compare_models.py", *shared, "--num-images", "3", "--figure", str(FOLDER / "demo.png"))
    print(f"synthetic images, {NUM_CLASSES} classes; picture: {FOLDER / 'demo.png'}")
    print(
        f"{time.perf_counter() - start:.0f} s; your own model: --model timm:vit_tiny_patch16_224@pretrained, or @<file>"
    )


if __name__ == "__main__":
    main()
