"""What discover.py does: the boxes of every method on photos, drawn and printed, with the evaluation's own code."""

import argparse
from collections.abc import Sequence

from discovery_images import resized_hw
from discovery_results import HIT, choose_methods, draw_box, draw_mask, find_boxes, fitting_patch_size
from matplotlib.figure import Figure
from object_discovery import Box, DiscoveryMethod, PatchMask
from PIL import Image
from torchvision.transforms.functional import normalize, resize, to_tensor

from last_vit.data.image_files import load_photos
from last_vit.models import parse_model_arguments
from last_vit.results import result_name
from last_vit.runtime import select_device

_PANEL = 4.0  # inches


def run(args: argparse.Namespace) -> None:
    """Every model on every photo; what is wrong with a photo shows before a model is loaded."""
    arguments, device = parse_model_arguments(args.model), select_device(args.device)
    photos = load_photos(args.image)
    sizes = {name: resized_hw((photo.height, photo.width), args.resize) for name, photo in photos.items()}
    for argument in arguments:
        trained = argument.load()
        methods = choose_methods(args, trained)
        trained.model.to(device)
        patch_size = fitting_patch_size(argument.name, trained.model, trained.preprocessing.crop, sizes)
        for name, photo in photos.items():
            seen = resize(photo, args.resize) if args.resize else photo
            image = normalize(to_tensor(seen), trained.preprocessing.mean, trained.preprocessing.std)
            found = find_boxes(trained.model, image, methods, patch_size, f"photo {name}")
            args.out.mkdir(parents=True, exist_ok=True)
            file = args.out / f"{result_name(f'{name}_{argument.name}')}.png"
            draw_photo(argument.name, seen, methods, found, patch_size).savefig(file)
            for method, (box, _) in zip(methods, found, strict=True):
                scale = (photo.width / seen.width, photo.height / seen.height)
                corners = ", ".join(f"{edge * scale[i % 2]:.0f}" for i, edge in enumerate(box))
                print(f"{argument.name}, {name}: {method.name} [{corners}]")
            print(f"written {file}")


def draw_photo(
    model_name: str,
    photo: Image.Image,
    methods: Sequence[DiscoveryMethod],
    found: Sequence[tuple[Box, PatchMask]],
    patch_size: int,
) -> Figure:
    """The photo once per method, dark outside the patches that it found, with its box."""
    size = (_PANEL * len(methods), _PANEL * photo.height / photo.width + 0.5)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    panels = figure.subplots(1, len(methods), squeeze=False)[0]
    for panel, method, (box, patches) in zip(panels, methods, found, strict=True):
        panel.set_axis_off()
        draw_mask(panel, photo, patches.mask, patch_size)
        draw_box(panel, box, HIT)
        panel.set_title(f"{method.name} ({method.protocol})", fontsize=8)
    figure.suptitle(model_name, fontsize=10)
    return figure
