"""What the evaluations cost beside their model: each command runs as it is typed, on drawn images, random weights.

Time inside the outermost calls of torch modules counts as the model; the rest of the command's own loop (its record's
seconds) is decoding, copies, scores, labels, boxes and counting. One thread, no worker processes, so nothing of the
input is hidden behind the model. A small model makes the rest large: Point-in-Box runs ViT-B/16, discovery DINO's
ViT-S/16, segmentation CLIP ViT-B/16 with the classes of VOC.
"""

import contextlib
import json
import runpy
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench_report import BenchReport, Ratio
from run_all import ROOT
from torch import nn

from last_vit.data.synthetic import SyntheticObjects, write_imagenet, write_voc

SIDE = 320
VIT_B = "torchvision:vit_b_16@random,pool=last,top_k=1"
VIT_S = "dino:vit_small/16@random,pool=last,top_k=1"
CLIP_B = "open_clip:ViT-B-16@random"
LIMITS = {"Point-in-Box": 10.0, "segmentation": 20.0}


@contextlib.contextmanager
def module_clock() -> Iterator[list[float]]:
    """Seconds within outermost calls of torch modules while the block lasts, in a list of one."""
    depth, start, total = 0, 0.0, [0.0]

    def enter(*_: object) -> None:
        nonlocal depth, start
        if depth == 0:
            start = time.perf_counter()
        depth += 1

    def leave(*_: object) -> None:
        nonlocal depth
        depth -= 1
        if depth == 0:
            total[0] += time.perf_counter() - start

    handles = [
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave, always_call=True),
    ]
    try:
        yield total
    finally:
        for handle in handles:
            handle.remove()


def run_command(folder: Path, script: str, *arguments: str) -> tuple[float, float]:
    """Run a command of the repository in this process.

    Returns:
        Seconds of its loop, as its record has them, and seconds within modules while it ran.
    """
    before = sys.argv
    sys.argv = [script, *arguments, "--device", "cpu", "--num-workers", "0", "--output", "bench"]
    try:
        with module_clock() as inside:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    finally:
        sys.argv = before
    record = max((folder / "output").rglob("bench*.json"), key=lambda path: path.stat().st_mtime)
    return json.loads(record.read_text(encoding="utf-8"))["seconds"], inside[0]


def bench(report: BenchReport) -> None:
    """Each command on a few images and on more: what is the same in both, such as a first look at a model, cancels."""
    few, many = report.size(2, 4), report.size(6, 16)
    report.describe(f"drawn images of {SIDE} px", dataset=f"drawn images of {SIDE} px", n_images=many - few)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for count in (few, many):
            samples = SyntheticObjects(count, "val", image_size=SIDE, num_classes=2, seed=0)
            write_imagenet(samples, Path(f"imagenet{count}"))
            write_voc(samples, Path(f"voc{count}"))
        voc = "--voc-root voc{}/VOC2012 --voc-split val"
        commands = {
            "Point-in-Box": f"visualization/evaluate_patch_hit.py --max-box-area none "
            f"--imagenet-root imagenet{{}} --model {VIT_B}",
            "object discovery": f"dino/eval_object_discovery.py {voc} --model {VIT_S}",
            "segmentation": "clip/eval_zero_shot_seg.py --dataset voc20 --root voc{}/VOC2012 --any-count "
            f"--templates simple --no-text-cache --model {CLIP_B}",
        }
        for name, command in commands.items():
            shares = []
            for _ in range(report.size(1, 3)):
                runs = [run_command(Path(folder), *command.format(count).split()) for count in (few, many)]
                loop, model = (more - less for less, more in zip(*runs, strict=True))
                shares.append(100 * (1 - model / loop))
            spread = Ratio(statistics.median(shares), min(shares), max(shares))
            key = name.lower().replace("-", "_").replace(" ", "_")
            report.add(f"{key}_rest", f"{name}: time outside the model", spread, limit=LIMITS.get(name), unit="%")
