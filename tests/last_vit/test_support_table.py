"""The table of hosts in docs/hosts.md says what a tiny model of every listed class does."""

from itertools import groupby
from pathlib import Path

import timm
import torch
import torchvision
from host_parts import HOSTS
from layer_tokens import count_layers
from torch import Tensor, nn

from last_vit.dense import attach_last, dense_forward

DOCS = Path(__file__).resolve().parents[2] / "docs" / "hosts.md"
BEGIN, END = "<!-- written by tests/last_vit/test_support_table.py -->\n", "<!-- end -->\n"
LIBRARIES = {
    "vision_transformer": "facebookresearch dino",
    "dinov2": "facebookresearch dinov2",
    "dinov3": "facebookresearch dinov3",
    "clip": "OpenAI clip",
}
CONVNETS = {
    "torchvision-convnet": lambda: torchvision.models.resnet18(num_classes=5),
    "torchvision-without-gap": lambda: torchvision.models.squeezenet1_1(num_classes=5),
    "timm-convnet": lambda: timm.create_model("test_convnext", num_classes=5),
}
BUILDERS = {name: host.build for name, host in HOSTS.items()} | CONVNETS


def read_out(model: nn.Module, images: Tensor) -> str:
    out = dense_forward(model, images)
    if out.cls_token is not None and torch.equal(out.global_token, out.cls_token):
        return "class token"
    if torch.allclose(out.global_token, out.patch_tokens.mean(1), atol=1e-5):
        return "mean of patches"
    return "mean of patches, then a norm" if works(attach_last, model, 2) else "learned pool"


def works(call: object, *args: object) -> bool:
    try:
        call(*args)
    except (ValueError, AssertionError):
        return False
    return True


def row(model: nn.Module) -> tuple[str, ...]:
    is_convnet = count_layers(model)[0] == 1
    images = torch.randn(2, 3, 64, 64) if is_convnet else torch.randn(2, 3, 32, 32)
    wide = torch.randn(2, 3, 64, 128) if is_convnet else torch.randn(2, 3, 32, 64)
    library = type(model).__module__.partition(".")[0]
    return (
        LIBRARIES.get(library, library),
        read_out(model, images),
        "any" if works(dense_forward, model, wide) else "its own",
        "last map" if is_convnet else "each block",
        "yes" if works(attach_last, model, 2) else "no, read only",
    )


@torch.no_grad()
def test_docs_tell_what_hosts_do():
    torch.manual_seed(0)
    rows = {}
    for build in BUILDERS.values():
        model = build().eval()
        found = row(model)
        rows.setdefault((found[0], type(model).__qualname__), found)  # a class as it is built first
    lines = ["| library | classes | reads | image size | tokens of | takes LaSt |", "|---|---|---|---|---|---|"]
    for (library, *rest), classes in groupby(sorted(rows, key=rows.get), key=rows.get):
        lines.append(f"| {library} | {', '.join(f'`{name}`' for _, name in classes)} | {' | '.join(rest)} |")
    table = "\n".join(lines) + "\n"
    written = DOCS.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert written == table, f"between the two comments of docs/hosts.md belongs:\n{table}"
