"""The report: models measured one by one, everything that the page shows as JSON values, and one HTML file of it.

Numbers of the gallery are packed in base64: scores as the integers that are shown (0.412 is 412), so that the page
shows exactly the rounded value, norms as they are. The static parts of the page stand in `report/`. Its policy (CSP)
allows only the two inlined texts by their hash, and pictures from data URIs: no network, and no script that a file name
could smuggle in. The data are JSON, which the scripts show as text, never as markup.
"""

import argparse
import base64
import hashlib
import html
import io
import json
from collections import ChainMap
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import torch
from figure_style import COLORMAP, model_color
from foreground_images import ForegroundImages
from matplotlib import colormaps
from matplotlib.colors import to_hex
from measured_models import image_set_name, open_images, vote_selections
from PIL import Image
from report_data import ImageView, ModelMeasures, disagreement, measure_model
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from last_vit.data.image_files import load_rgb
from last_vit.evaluation import eval_transform, open_loader, pooling_words, print_metrics
from last_vit.models import ModelArgument, TrainedModel, parse_model_arguments
from last_vit.pooling import LaStPool
from last_vit.results import git_commit, hide_machine_paths, run_command
from last_vit.runtime import process_group, world_size

THUMBNAIL, SCORE_DECIMALS = 224, 3
_JPEG_QUALITY = 82
_PARTS = Path(__file__).resolve().parent / "report"
_COLUMNS = {
    "point_in_box": "PiB",
    "auroc": "AUROC",
    "background_top_10": "bg top 10",
    "votes_inside": "votes in",
    "votes_lift": "lift",
    "outlier_share": "outliers",
    "correlation": "corr",
}
_SCRIPTS = ("charts.js", "summary.js", "gallery.js", "page.js")


def run(args: argparse.Namespace) -> None:
    """The command make_report.py."""
    measured = []
    with process_group(args.device) as device:
        if world_size() > 1:
            raise ValueError(f"one page is made by one process, not {world_size()}: start it with python, not torchrun")
        arguments, images = parse_model_arguments(args.model), open_images(args)
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.seed))[: args.num_images]
        models = [argument.load(args.image_size, args.resize) for argument in arguments]
        for argument, trained, selection in zip(arguments, models, vote_selections(models), strict=True):
            model, prep = trained.model.to(device), trained.preprocessing
            images.transform = eval_transform(prep)
            loader = open_loader(images, argument.name, args.batch_size, args.num_workers)
            found = measure_model(model, loader, device, prep, selection, set(chosen.tolist()))
            measured.append((argument, trained, selection, found))
            model.cpu()
    content = report_content(args, images, sorted(chosen.tolist()), measured)
    page = build_page(content)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "index.html").write_text(page, encoding="utf-8")
    record = json.dumps(report_numbers(content), indent=2, allow_nan=False)
    (args.out / "report.json").write_text(record + "\n", encoding="utf-8")
    rows = [([model["name"]], ChainMap(*model["metrics"].values())) for model in content["models"]]
    print_metrics(["model"], _COLUMNS, rows)
    print(f"written {args.out / 'index.html'} ({len(page.encode()) / 1e6:.2f} MB) and {args.out / 'report.json'}")


def report_content(
    args: argparse.Namespace,
    images: ForegroundImages,
    chosen: Sequence[int],
    measured: Sequence[tuple[ModelArgument, TrainedModel, LaStPool, ModelMeasures]],
) -> dict[str, Any]:
    """Everything that the page shows, as JSON values.

    `chosen` are the indices of the gallery, `measured` every model, how its votes are chosen, and what was measured.
    """
    all_measures = [measures for *_, measures in measured]
    grids = [measures.grid_hw for measures in all_measures]
    zooms = [trained.preprocessing.resize / trained.preprocessing.crop for _, trained, *_ in measured]
    gallery = []
    for index in chosen:
        views = [measures.views[index] for measures in all_measures]
        path = images.image_paths[index]
        name = path.relative_to(images.folder).as_posix()
        packed = pack_image(load_rgb(path), views, zooms)
        gallery.append({"name": name, "disagreement": disagreement(views, grids), **packed})
    annotation = "boxes" if args.boxes is not None else "masks" if args.masks is not None else None
    return {
        "title": " / ".join(argument.name for argument, *_ in measured) + f" on {image_set_name(args)}",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": run_command(),
        "commit": git_commit(),
        "colormap": "".join(to_hex(color)[1:] for color in colormaps[COLORMAP](range(256))),
        "images": {
            "name": image_set_name(args),
            "count": len(images),
            "annotation": annotation,
            "skipped": dict(images.skipped),
            "seed": args.seed,
        },
        "models": [_model_content(place, *entry) for place, entry in enumerate(measured)],
        "gallery": gallery,
    }


def report_numbers(content: Mapping[str, Any]) -> dict[str, Any]:
    """The aggregate numbers of a page, and of each image of its gallery how the models did."""
    kept = {key: content[key] for key in ("title", "date", "command", "commit", "images")}
    models = [{key: value for key, value in model.items() if key != "color"} for model in content["models"]]
    gallery = []
    for item in content["gallery"]:
        found = {key: [view[key] for view in item["views"]] for key in ("hit", "auroc")}
        gallery.append({"name": item["name"], "disagreement": item["disagreement"], **found})
    return {**kept, "models": models, "gallery": gallery}


def _model_content(
    place: int,
    argument: ModelArgument,
    trained: TrainedModel,
    selection: LaStPool,
    measures: ModelMeasures,
) -> dict[str, Any]:
    """One model: what it is in words, its grid, its numbers and the lines of its charts."""
    prep, (height, width) = trained.preprocessing, measures.grid_hw
    return {
        "name": argument.name,
        "color": model_color(place),
        "spec": hide_machine_paths(argument.spec),
        "weights": f"sha256 {trained.checkpoint_sha256}" if argument.seed is None else f"random, seed {argument.seed}",
        "pooling": pooling_words(trained.pooling, trained.pooling_source),
        "input": f"shorter side {prep.resize}, crop {prep.crop} px",
        "patches": f"{height} \u00d7 {width}, {measures.num_channels} channels",
        "votes": f"K = {min(selection.top_k, height * width)}, {selection.variant}",
        "grid": [height, width],
        "metrics": measures.metrics,
        "charts": measures.charts,
    }


def pack_image(picture: Image.Image, views: Sequence[ImageView], zooms: Sequence[float]) -> dict[str, Any]:
    """Everything that the page draws of one image.

    `zooms` are each model's shorter side over its crop. "thumbnails" are JPEG data URIs, one per zoom; "views" one
    mapping per model.
    """
    thumbnails = {zoom: _thumbnail(picture, zoom) for zoom in dict.fromkeys(zooms)}
    packed = []
    for view, zoom in zip(views, zooms, strict=True):
        packed.append(
            {
                "thumbnail": list(thumbnails).index(zoom),
                "frame": [round(value, 6) for value in view.frame_xyxy],
                "box": None if view.box_xyxy is None else [round(value, 5) for value in view.box_xyxy],
                "score": _pack(view.score.double() * 10**SCORE_DECIMALS, "<i2"),
                "votes": _pack(view.votes, "<u2"),
                "norm": _encode(view.norm.numpy().astype("<f4").tobytes()),
                "rgb": None if view.rgb is None else _pack(view.rgb * 255, "u1"),
                "object": None if view.is_foreground is None else _pack(view.is_foreground, "u1"),
                "best": view.best,
                "hit": view.is_hit,
                "auroc": view.auroc,
            }
        )
    return {"thumbnails": list(thumbnails.values()), "views": packed}


def _thumbnail(picture: Image.Image, zoom: float) -> str:
    """What a model sees of an image, at a resolution of its own."""
    resized = resize(picture, round(zoom * THUMBNAIL), InterpolationMode.LANCZOS)
    buffer = io.BytesIO()
    center_crop(resized, THUMBNAIL).save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{_encode(buffer.getvalue())}"


def _pack(values: Tensor, dtype: str) -> str:
    """Rounded values as base64; Python's and torch's rounding of halves to even."""
    whole = values.double().round().numpy().astype(np.dtype(dtype))
    return _encode(whole.tobytes())


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def build_page(data: Mapping[str, Any]) -> str:
    """HTML that needs nothing beside it, from `report_content`; a number that is not finite is a ValueError."""
    style = _read("page.css")
    script = "\n".join(_read(name) for name in _SCRIPTS)
    policy = (
        f"default-src 'none'; img-src data:; style-src {_source(style)}; script-src {_source(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    shape, left_out = {"boxes": "box", "masks": "mask"}.get(data["images"]["annotation"]), data["images"]["skipped"]
    known = f"A patch is object when more than half of its known area lies in a {shape}."
    notes = {
        "title": data["title"],
        "known": known if shape else "Nothing is known about objects on these images.",
        "left_out": ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count) or "No image",
        "command": f"{data['command']} (commit {data['commit']})",
    }
    words = {name: html.escape(text) for name, text in notes.items()}
    return Template(_read("page.html")).substitute(
        **words, policy=policy, style=style, script=script, data=_embed(data)
    )


def _embed(data: Mapping[str, Any]) -> str:
    """JSON that can stand inside a script element: no `<` ends the element or opens a comment."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _source(text: str) -> str:
    return f"'sha256-{_encode(hashlib.sha256(text.encode()).digest())}'"


def _read(name: str) -> str:
    return (_PARTS / name).read_text(encoding="utf-8")
