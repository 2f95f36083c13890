r"""Zero-shot segmentation by a CLIP's patches: mIoU on VOC, Context, COCO, ADE20K, Cityscapes, or your own images.

    python clip/eval_zero_shot_seg.py --dataset voc20 --root VOCdevkit/VOC2012 --protocol sclip \
        --model "CLIP ViT-B/16, CLS=open_clip:ViT-B-16-quickgelu@ViT-B-16.pt" \
        --model "CLIP ViT-B/16, LaSt=open_clip:ViT-B-16-quickgelu@logs/last/checkpoints/epoch_1.pt"
    python clip/eval_zero_shot_seg.py --dataset custom --root rooms --class-names rooms/classes.txt --model ...
    torchrun --nproc-per-node 8 clip/eval_zero_shot_seg.py ...        # every image once, whatever the number

Every patch goes through the final norm and the projection of the image tower and is compared with the text embedding of
every class name (mean over 80 prompts, kept by content). Cosines of overlapping windows are averaged and stretched to
the annotation's size; a class scores what the best of its names does. `--protocol` sets names, image size, windows,
softmax scale, thresholds and refinement as the code of that method has them for the data set; flags replace single
settings, and every record holds them all. What a method does to the last block is apart: `--last-block`, plain CLIP
(vanilla) by default. The pooling takes no part in dense features: LaSt shows through the weights trained with it. For
mIoU see clip/miou.py: unions over the whole set, ignored pixels left out, mean over the classes that occur.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zero_shot_cli import add_model_flags, load_clip_argument

from last_vit.command_line import command_parser, positive, run_command_line

if TYPE_CHECKING:
    import torch
    from seg_sets import SegmentationSet
    from seg_settings import SegmentationSetting
    from zero_shot_segmenter import ZeroShotSegmenter

    from last_vit.clip_models import LoadedClip

LAST_BLOCKS = ("vanilla", "maskclip", "sclip", "clearclip", "naclip", "fvit")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    from seg_settings import CUSTOM, DATASETS, PROTOCOLS, ZERO_LABELS

    parser = command_parser("eval_zero_shot_seg.py", __doc__)
    add_model_flags(parser)
    parser.add_argument(
        "--last-block",
        choices=LAST_BLOCKS,
        default="vanilla",
        help="see last_vit/clip_last_block.py; default vanilla",
    )
    data = parser.add_argument_group("data")
    add = data.add_argument
    add("--dataset", choices=(*DATASETS, CUSTOM), required=True, help="custom has images/ and labels/")
    add("--root", type=Path, required=True, help="the data set's folder, in its official layout")
    add("--split", default="val", help="default val")
    add("--any-count", action="store_true", help="take a part of a data set, too, and say so in the record")
    add("--class-names", type=Path, help="file of names in place of the protocol's; custom needs one")
    add("--zero-label", choices=ZERO_LABELS, default="class", help="custom: what 0 means in label files; default class")
    add("--dataset-name", help="in the results; default: the benchmark's, of custom the folder's")
    rule = parser.add_argument_group("protocol, and flags that replace its settings for the data set")
    add = rule.add_argument
    add("--protocol", choices=PROTOCOLS, default="sclip", help="default sclip, the nearest to the paper's")
    add("--short-side", type=positive, help="of the image as the model sees it, in pixels")
    add("--crop", type=int, help="side of a window in pixels; 0 is the whole image at once")
    add("--stride", type=int, help="from window to window, in pixels")
    add("--logit-scale", type=float, help="factor of the cosines in the softmax")
    add("--prob-threshold", type=float, help="pixels less probable than this become background; 0 is none")
    add("--pamr", choices=("on", "off"), help="refine scores by the image: 10 steps, dilations 8 and 16")
    add("--templates", default="openai", help="prompts: openai (80), simple (7), a template with {}, or a file of them")
    running = parser.add_argument_group("running")
    add = running.add_argument
    add("--batch-size", type=positive, default=8, help="images per process and step; default 8")
    add("--window-batch", type=positive, default=64, help="windows per forward pass, at most; default 64")
    add("--num-workers", type=int, default=4, help="loading processes; default 4")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:<index>; default auto")
    add("--text-cache", type=Path, help="folder of class embeddings; default ~/.cache/last_vit/class_embeddings")
    add("--no-text-cache", action="store_true", help="neither read nor keep class embeddings")
    output = parser.add_argument_group("output")
    add = output.add_argument
    add("--per-class", action="store_true", help="also print and record the IoU of every class")
    add("--overlays", type=Path, help="folder for pictures of image, ground truth and prediction")
    add("--num-overlays", type=positive, default=12, help="pictures per model, evenly spread over the set; default 12")
    add("--output", default="zero_shot_seg", help="beginning of the files' names in results/; default zero_shot_seg")
    add("--table", action="store_true", help="show the results in README's table, in rows called as the models are")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with status 2 and one line on any error that the user can mend."""
    run_command_line(build_parser(), _run, argv)


def _run(args: argparse.Namespace) -> None:
    from seg_output import print_result, write_record

    from last_vit.models import parse_model_arguments
    from last_vit.runtime import is_main_process, process_group

    arguments = parse_model_arguments(args.model)
    setting = choose_setting(args)
    with process_group(args.device) as device:
        images = open_images(args, setting)
        for argument in arguments:
            clip = load_clip_argument(argument, args, device)
            segmenter = build_segmenter(args, setting, clip, device)
            result, seconds = evaluate(args, setting, images, segmenter, argument.name)
            if not is_main_process():
                continue
            print_result(args, argument, setting, clip, images, result, seconds, device)
            print(f"written {write_record(args, argument, setting, clip, images, result, seconds, device)}")
            if args.overlays is not None:
                from seg_overlays import draw_overlays

                for path in draw_overlays(args.overlays, args.num_overlays, argument.name, setting, images, segmenter):
                    print(f"written {path}")


def choose_setting(args: argparse.Namespace) -> "SegmentationSetting":
    """The protocol's record for the data set, with what the flags replace.

    Raises:
        ValueError: A custom set without names, a flag that the data set has no use for, names that do not fit, or as
            `find_setting`, `custom_setting` and `read_class_names`.
        FileNotFoundError: No such file of names.
    """
    from dataclasses import replace

    from class_names import read_class_names
    from seg_settings import CUSTOM, custom_setting, find_setting

    if args.dataset == CUSTOM:
        if args.class_names is None:
            raise ValueError("a custom data set needs --class-names, a file with one class per line")
        name = args.dataset_name or args.root.resolve().name
        setting = custom_setting(args.protocol, read_class_names(args.class_names), args.zero_label, name)
    else:
        if args.zero_label != "class":
            raise ValueError(f"--zero-label is for custom data; what 0 means in {args.dataset} is known")
        setting = find_setting(args.dataset, args.protocol)
        if args.class_names is not None:
            setting = replace(setting, class_names=read_class_names(args.class_names, setting.num_classes))
        setting = replace(setting, name=args.dataset_name or setting.name)
    asked = {
        key: getattr(args, key)
        for key in ("short_side", "crop", "stride", "logit_scale", "prob_threshold")
        if getattr(args, key) is not None
    }
    if asked.get("prob_threshold") and not setting.has_background:
        raise ValueError(
            f"--prob-threshold gives pixels to the background, class 0, and {setting.name} has none; for custom data "
            f"see --zero-label background"
        )
    if args.pamr is not None:
        asked["uses_pamr"] = args.pamr == "on"
    return replace(setting, **asked)


def open_images(args: argparse.Namespace, setting: "SegmentationSetting") -> "SegmentationSet":
    """The images of the flags with their labels.

    Raises:
        ValueError, FileNotFoundError: As `SegmentationSet`.
    """
    from seg_sets import SegmentationSet
    from seg_settings import CUSTOM

    own = {"class_names": setting.class_names, "zero_label": args.zero_label} if args.dataset == CUSTOM else {}
    return SegmentationSet(args.dataset, args.root, args.split, any_count=args.any_count, **own)


def build_segmenter(
    args: argparse.Namespace, setting: "SegmentationSetting", clip: "LoadedClip", device: "torch.device"
) -> "ZeroShotSegmenter":
    """A CLIP as a segmenter of the setting's classes.

    Raises:
        ValueError: A last block or windows that the tower cannot have, or as `encode_class_names` and `LabelRule`.
        FileNotFoundError: As `read_templates`.
    """
    from functools import partial

    from class_names import flatten_names
    from label_maps import LabelRule
    from sliding_window import plan_windows
    from zero_shot_segmenter import ZeroShotSegmenter

    from last_vit.clip_dense import clip_dense_features
    from last_vit.clip_text import default_cache, encode_class_names, read_templates
    from last_vit.models import find_patch_size

    prep = clip.preprocessing
    patch_size = find_patch_size(clip.model, prep.crop)
    plan_windows((setting.short_side,) * 2, setting.crop, setting.stride, patch_size)  # errors before the work
    names, class_of_name = flatten_names(setting.class_names)
    cache = None if args.no_text_cache else args.text_cache or default_cache()
    text = encode_class_names(clip.model, clip.tokenizer, names, read_templates(args.templates), cache=cache)
    return ZeroShotSegmenter(
        dense=partial(clip_dense_features, clip.model, last_block=args.last_block),
        text=text.to(device),
        rule=LabelRule(class_of_name, setting.logit_scale, setting.prob_threshold, setting.area_threshold),
        mean=prep.mean,
        std=prep.std,
        patch_size=patch_size,
        crop=setting.crop,
        stride=setting.stride,
        pad_to_patch=setting.pad_to_patch,
        uses_pamr=setting.uses_pamr,
        window_batch=args.window_batch,
    )


def evaluate(
    args: argparse.Namespace,
    setting: "SegmentationSetting",
    images: "SegmentationSet",
    segmenter: "ZeroShotSegmenter",
    title: str,
) -> tuple[dict[str, Any], float]:
    """Segment this process's share of the images.

    Returns:
        What `MeanIoU.compute` gives for all processes, and the seconds that it took.

    Raises:
        ValueError: As `ZeroShotSegmenter`, `MeanIoU` and the images.
    """
    from miou import MeanIoU
    from seg_inputs import ResizedImages
    from tqdm import tqdm

    from last_vit.data.loaders import build_test_loader
    from last_vit.runtime import is_main_process

    metric = MeanIoU(setting.num_classes, setting.ignored)
    resized = ResizedImages(images, setting.short_side)
    loader = build_test_loader(resized, args.batch_size, args.num_workers, collate=list)  # sizes differ
    start = time.perf_counter()
    for batch in tqdm(loader, desc=title, unit="batch", disable=None if is_main_process() else True, leave=False):
        labels = [sample["label"].to(segmenter.text.device, non_blocking=True) for sample in batch]
        found = segmenter([sample["resized"] for sample in batch], [tuple(label.shape) for label in labels])
        for prediction, label in zip(found, labels, strict=True):
            metric.update(prediction, label)
    return metric.compute(), time.perf_counter() - start


if __name__ == "__main__":
    main()
