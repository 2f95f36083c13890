"""What the tests of visualization/ share: the images' sizes and boxes, models, flags, and a reading of them by hand."""

from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch
from foreground_images import ForegroundImages, patch_foreground
from layer_tokens import layer_tokens
from patch_norms import token_norms

from last_vit.evaluation import eval_transform
from last_vit.models import parse_model_argument
from last_vit.patch_scores import patch_score
from last_vit.results import read_results

CLASSES = 3
# width, height, boxes: six with one object, of which the last is large; two objects; none
IMAGES = [
    (70, 90, [(15, 10, 40, 40)]),
    (96, 66, [(40, 20, 70, 50)]),
    (80, 84, [(22, 28, 60, 55)]),
    (66, 100, [(10, 40, 35, 75)]),
    (88, 72, [(20, 12, 44, 60)]),
    (72, 72, [(4, 4, 66, 66)]),
    (90, 80, [(10, 10, 30, 30), (40, 40, 70, 70)]),
    (80, 70, []),
]
VIT, LAST = "ViT=timm:test_vit@vit.pth", "LaSt=timm:test_vit@vit.pth,pool=last,top_k=3,variant=paper"
RESNET = "ResNet=timm:test_resnet@random"
SIZE = ["--image-size", "64", "--resize", "72", "--device", "cpu"]
SMALL = [*SIZE, "--num-workers", "0", "--batch-size", "3"]
FOLDER = ["--images", "imagenet/val"]
MASKS, BOXES = [*FOLDER, "--masks", "masks"], [*FOLDER, "--boxes", "imagenet/Annotations"]
IMAGENET = ["--imagenet-root", "imagenet"]


def read_records() -> list[dict]:
    """Every measurement that was kept by the commands that ran in the current folder."""
    folders = [Path("results"), *sorted(Path("output").glob("*"))]
    return [asdict(record) for folder in folders for record in read_results(folder)]


@cache
def read_by_hand(text: str) -> list[SimpleNamespace]:
    """Every image of the set as a model sees it, read alone; in the order of the commands, which is by path."""
    trained = parse_model_argument(text).load(64, 72)
    found = []
    for sample in ForegroundImages("imagenet/val", eval_transform(trained.preprocessing), masks="masks"):
        with torch.no_grad():
            tokens = layer_tokens(trained.model, sample["image"][None])
        output = tokens.output
        front, known = patch_foreground(sample["foreground"][None], output.grid_hw)
        found.append(
            SimpleNamespace(
                sample=sample,
                model=trained.model,
                output=output,
                tokens=output.patch_tokens[0],
                score=patch_score(output.patch_tokens, output.global_token)[0],
                norm=token_norms(tokens.layers[-1])[0],
                front=front[0],
                known=known[0],
            )
        )
    return found
