"""What segment.py does: photos segmented by every model with the evaluation's own code, drawn, and told in a line."""

import argparse

import numpy as np
import torch
from class_names import parse_vocabulary
from seg_overlays import class_shares, draw_overlay, palette
from seg_sets import MAX_LONG_SIDE, resize_short_side
from seg_settings import custom_setting
from zero_shot_models import load_clip_argument
from zero_shot_segmentation import build_segmenter, replace_settings

from last_vit.data.image_files import load_photos
from last_vit.models import parse_model_arguments
from last_vit.results import result_name
from last_vit.runtime import select_device


def run(args: argparse.Namespace) -> None:
    """Every model on every photo; what is wrong with a photo or the words shows before a model is loaded."""
    arguments = parse_model_arguments(args.model)
    setting = replace_settings(custom_setting(args.protocol, parse_vocabulary(args.vocabulary)), args)
    names = [synonyms[0] for synonyms in setting.class_names]
    colors, device = palette(len(names)), select_device(args.device)
    photos = load_photos(args.image)
    for photo in photos.values():
        photo.thumbnail((MAX_LONG_SIDE, MAX_LONG_SIDE))  # of what is drawn; no model sees more
    args.out.mkdir(parents=True, exist_ok=True)
    for argument in arguments:
        segmenter = build_segmenter(args, setting, load_clip_argument(argument, args.precision, device), device)
        for name, pixels in ((name, np.array(photo)) for name, photo in photos.items()):
            image = torch.from_numpy(pixels).permute(2, 0, 1)
            (label,) = segmenter([resize_short_side(image, setting.short_side)], [tuple(image.shape[1:])])
            label = label.cpu().numpy()
            file = args.out / f"{result_name(f'{name}_{argument.name}')}.png"
            draw_overlay([name, argument.name], pixels, None, label, names, colors).savefig(file)
            shares = ", ".join(f"{names[index]} {100 * share:.0f} %" for index, share in class_shares(label))
            print(f"{argument.name}, {name}: {shares}; written {file}")
