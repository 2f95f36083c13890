"""The four evaluations as their command lines run them, each with a model of random weights. Imported by benches only.

Each is built from its own command's parser and functions, loader included; nothing of a loop is repeated here.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import discover_boxes
import torch
from bench_tracks import ROOT, load_track
from class_embeddings import ClassEmbeddings
from discovery_images import DiscoveryImages, build_native_loader
from evaluation_files import FOLDERS
from loop_clock import Wrap
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Subset

from last_vit import patch_hit
from last_vit.data.coco import read_coco_json
from last_vit.data.loaders import build_test_loader
from last_vit.models import find_patch_size, parse_model_argument


@dataclass(frozen=True)
class Evaluation:
    """One evaluation, ready to run again and again.

    Attributes:
        words: Its name, model and input.
        num_images: Of one pass.
        run: One pass, with the model's forward function wrapped by what it is given.
        bare: The same model over the same images in memory and nothing else, where that is compared.
    """

    words: str
    num_images: int
    run: Callable[[Wrap], object]
    bare: Callable[[], object] | None = None


@dataclass(frozen=True)
class RunOptions:
    """What the commands are called with.

    Attributes:
        data: Folder with `FOLDERS`.
        device: Where to compute.
        num_images: Of one pass, at most.
        num_workers: Loading processes.
        model: In place of the evaluation's own, as its --model takes it (detection: a file in its configs/).
    """

    data: Path
    device: torch.device
    num_images: int
    num_workers: int
    model: str

    def flags(self, **more: object) -> list[str]:
        """Flags that all commands know, and more."""
        every = {"device": self.device, "num-workers": self.num_workers, **more}
        return [text for name, value in every.items() for text in (f"--{name}", str(value))]


def point_in_box(options: RunOptions) -> Evaluation:
    """visualization/evaluate_patch_hit.py."""
    *_, protocol, script = load_track(
        "visualization", "token_cli", "diagnostic_cli", "point_in_box_protocol", "evaluate_patch_hit"
    )
    args = script.build_parser().parse_args(
        options.flags(**{"imagenet-root": options.data / FOLDERS["imagenet"], "max-box-area": "none"})
    )
    argument = parse_model_argument(options.model)
    trained, images = argument.load(), protocol.open_imagenet(args)
    model, count = trained.model.to(options.device), min(options.num_images, len(images.dataset))
    images = replace(images, dataset=Subset(images.dataset, range(count)))
    images.prepare_for(trained.preprocessing)
    loader = build_test_loader(images.dataset, args.batch_size, options.num_workers)
    in_memory = [batch["image"].to(options.device) for batch in loader]

    def run(wrap: Wrap) -> None:
        with patch.object(patch_hit, "dense_forward", wrap(patch_hit.dense_forward)):
            protocol.measure_hits(args, "", argument.spec, trained, trained.selection(), images, options.device)

    @torch.inference_mode()
    def bare() -> None:
        for batch in in_memory:
            model(batch)

    return Evaluation(f"Point-in-Box, {argument.spec}, {trained.preprocessing.crop} px", count, run, bare)


def object_discovery(options: RunOptions) -> Evaluation:
    """dino/eval_object_discovery.py by patch scores, without its first look at model and annotations."""
    (script,) = load_track("dino", "eval_object_discovery")
    args = script.build_parser().parse_args(
        options.flags(**{"model": options.model, "voc-root": options.data / FOLDERS["voc"], "voc-split": "val"})
    )
    argument = parse_model_argument(options.model)
    trained, objects = argument.load(), script.open_objects(args)
    objects = objects._replace(images=objects.images[: options.num_images])
    methods, model, prep = script.choose_methods(args, trained), trained.model.to(options.device), trained.preprocessing
    patch_size = find_patch_size(model, prep.crop)  # by trying, once per command
    images = DiscoveryImages(objects, prep.mean, prep.std)

    def run(wrap: Wrap) -> None:
        loader = build_native_loader(images, patch_size, args.batch_size, options.num_workers)
        with patch.object(discover_boxes, "dense_forward", wrap(discover_boxes.dense_forward)):
            done = discover_boxes.discover_boxes(model, loader, methods, patch_size, options.device)
        done.runs[0].corloc.compute()

    return Evaluation(f"object discovery, {argument.spec}, native size", len(images), run)


def segmentation(options: RunOptions) -> Evaluation:
    """clip/eval_zero_shot_seg.py on ADE20K, whose 150 names are the most work behind the model."""
    zero_shot_cli, script = load_track("clip", "zero_shot_cli", "eval_zero_shot_seg")
    args = script.build_parser().parse_args(
        ["--any-count", *options.flags(model=options.model, dataset="ade20k", root=options.data / FOLDERS["ade20k"])]
    )
    argument, setting = parse_model_argument(options.model), script.choose_setting(args)
    clip = zero_shot_cli.load_clip_argument(argument, args, options.device)
    images = script.open_images(args, setting)
    images = Subset(images, range(min(options.num_images, len(images))))
    width = _embedding_width(clip.model)

    def random_text(_model: object, _tokenizer: object, names: list[str], *_: object, **__: object) -> Tensor:
        return F.normalize(torch.randn(len(names), width, generator=torch.Generator().manual_seed(0)), dim=1)

    with patch("last_vit.clip_text.encode_class_names", random_text):  # 12,000 prompts are another measurement
        segmenter = script.build_segmenter(args, setting, clip, options.device)

    def run(wrap: Wrap) -> None:
        script.evaluate(args, setting, images, replace(segmenter, dense=wrap(segmenter.dense)), "")

    windows = f"{setting.short_side} px in windows of {setting.crop}, {len(segmenter.text)} names"
    return Evaluation(f"segmentation, {argument.spec}, {windows}", len(images), run)


def detection(options: RunOptions) -> Evaluation:
    """ov_detection/lazy_train.py --eval-only: 100 boxes per image whatever their scores, and their AP."""
    from detectron2.config import LazyConfig, instantiate

    load_track("ov_detection", "fvit", "ov_json", "ov_mapper", "ov_data", "ov_evaluator", "ov_evaluation")
    from ov_data import OvImageSet, build_ov_test_loader
    from ov_evaluation import evaluate

    cfg = LazyConfig.load(str(ROOT / "ov_detection" / "configs" / options.model))
    cfg.model.clip.update(checkpoint=None, random_seed=0)
    cfg.model.vision_language_score = True
    cfg.model.roi_heads.score_thresh = 0.0
    coco = options.data / FOLDERS["coco"]
    json_file, size = coco / "annotations" / "instances_val2017.json", cfg.model.square_size
    names = [category["name"] for category in read_coco_json(json_file)["categories"]]
    count = min(options.num_images, len(read_coco_json(json_file)["images"]))
    dataset = OvImageSet(json_file, coco / "val2017", size, train=False, novel=names[-2:], max_images=count)
    clip, seeded = instantiate(cfg.model.clip), torch.Generator().manual_seed(0)
    rows = torch.randn(len(names) + 1, clip.embed_dim, generator=seeded)
    words = ClassEmbeddings(dataset.classes.names, rows[:-1], rows[-1], "random", "none")
    parts = {**{name: cfg.model[name] for name in cfg.model}, "clip": clip, "vocabulary": words}
    model = instantiate({**parts, "split": dataset.classes.split}).to(options.device)
    # as a user's run: one image at a time, as the configs have it
    loader = build_ov_test_loader(dataset, cfg.dataloader.test.batch_size, options.num_workers)

    def run(wrap: Wrap) -> None:
        with patch.object(model, "forward", wrap(model.forward)):
            evaluate(model, loader, options.device, ["box"], cfg.train.bf16)

    return Evaluation(f"detection, {options.model}, {size} px", count, run)


def _embedding_width(model: torch.nn.Module) -> int:
    with torch.inference_mode():
        tokens = torch.zeros(1, model.context_length, dtype=torch.long, device=next(model.parameters()).device)
        return model.encode_text(tokens).shape[1]
