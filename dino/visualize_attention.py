r"""What the class token of a ViT attends to in the last layer, one picture per head (DINO's visualize_attention.py).

    python dino/visualize_attention.py --pretrained_weights dino_deitsmall8_pretrain.pth --image_path image.jpg
    python dino/visualize_attention.py --patch_size 16 --pretrained_weights output/dino/checkpoint.pth \
        --image_path folder --threshold 0.6 --output_dir attention

Writes img.png (the image as the model sees it: resized to --image_size, aspect ignored, and cut to whole patches),
attn-head<j>.png, and with --threshold t mask_th<t>_head<j>.png: the fewest patches that hold that share of the head's
attention. For a folder, each image gets a folder of its own. A map's colours span its own range, dark to bright.

A backbone trained with LaSt or the mean still has a class token, but nothing was learnt through its read-out; what such
a backbone attends to is better asked of its patch score (visualization/compare_models.py).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval_options import add_backbone_flags, add_device_flag

from last_vit.command_line import command_parser, positive, run_command_line

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from last_vit.models import TrainedModel

_MASK_RGB = (230, 159, 0)  # orange of Okabe and Ito's palette


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("visualize_attention.py", __doc__)
    add_backbone_flags(parser, patch_size=8)
    add = parser.add_argument_group("pictures").add_argument
    add("--image_path", type=Path, required=True, help="an image, or a folder of images")
    add(
        "--image_size",
        type=positive,
        nargs="+",
        default=[480, 480],
        metavar="PIXELS",
        help="height and width, or one number for the shorter side; default 480 480",
    )
    add("--threshold", type=float, help="also masks of the patches that hold this share of the attention, such as 0.6")
    add("--output_dir", type=Path, default=Path("."), help="default .")
    add_device_flag(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with status 2 and one line on any error that the user can mend."""
    run_command_line(build_parser(), _run, argv)


def _run(args: argparse.Namespace) -> None:
    from frozen_features import load_backbone
    from last_attention import find_attention_layer

    from last_vit.runtime import select_device

    if len(args.image_size) > 2:
        raise ValueError(f"--image_size is one number or two, height and width, got {len(args.image_size)}")
    if min(args.image_size) < args.patch_size:
        raise ValueError(f"--image_size {min(args.image_size)} is less than a patch of {args.patch_size} pixels")
    if args.threshold is not None and not 0 < args.threshold <= 1:
        raise ValueError(f"--threshold is a share of the attention in (0, 1], got {args.threshold}")
    folders = picture_folders(args.image_path, args.output_dir)
    device = select_device(args.device)
    trained = load_backbone(args)
    find_attention_layer(trained.model)
    trained.model.to(device)
    for path, folder in folders.items():
        pixels, attention = read_attention(trained, path, args.image_size, args.patch_size, device)
        print(f"written {len(draw(folder, pixels, attention, args.threshold))} pictures to {folder}")


def picture_folders(image_path: Path, output_dir: Path) -> dict[Path, Path]:
    """Image -> folder for its pictures: `output_dir` for one image; below it, after its name, for those of a folder.

    Raises:
        FileNotFoundError: Nothing at `image_path`, or no image in it.
    """
    from last_vit.data.image_files import IMAGE_SUFFIXES

    if image_path.is_file():
        return {image_path: output_dir}
    if not image_path.is_dir():
        raise FileNotFoundError(f"no image and no folder at --image_path {image_path}")
    paths = sorted(path for path in image_path.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"no image in --image_path {image_path}: looked for {', '.join(IMAGE_SUFFIXES)}")
    stems = [path.stem for path in paths]
    return {path: output_dir / (path.stem if stems.count(path.stem) == 1 else path.name) for path in paths}


def read_attention(
    trained: "TrainedModel", path: Path, image_size: Sequence[int], patch_size: int, device: "torch.device"
) -> "tuple[np.ndarray, Tensor]":
    """One image and what the class token attends to in it.

    Args:
        trained: Its model is on `device`.
        path: The image.
        image_size: Height and width in pixels, or the shorter side.
        patch_size: In pixels; the image is cut to whole patches at the right and the bottom.
        device: Where to compute.

    Returns:
        The image as it was read, uint8 [H, W, 3], and float32 [heads, h, w] on the CPU.

    Raises:
        ValueError: An unreadable image, or a model without class token or with an unknown attention layer.
    """
    import numpy as np
    import torch
    from last_attention import last_attention
    from torchvision.transforms import functional

    from last_vit.data.image_files import load_rgb

    resized = np.asarray(functional.resize(load_rgb(path), list(image_size)))
    height, width = (side - side % patch_size for side in resized.shape[:2])
    pixels = resized[:height, :width]
    prep = trained.preprocessing
    image = functional.normalize(functional.to_tensor(pixels.copy()), prep.mean, prep.std)
    with torch.inference_mode():
        found = last_attention(trained.model, image[None].to(device))
    if found.cls_attention is None:
        raise ValueError("this model has no class token, so there is no attention of it to draw")
    return pixels, found.cls_attention[0].unflatten(1, found.output.grid_hw).cpu()


def draw(folder: Path, pixels: "np.ndarray", attention: "Tensor", threshold: float | None) -> list[Path]:
    """Write the pictures of one image.

    Args:
        folder: Made when missing.
        pixels: uint8 [H, W, 3].
        attention: float [heads, h, w].
        threshold: Share of the attention in the masks; None draws none.

    Returns:
        The written files, img.png first.
    """
    from matplotlib.image import imsave
    from object_discovery import attention_mask

    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "img.png"]
    imsave(written[0], pixels)
    for head, each in enumerate(attention):
        written.append(folder / f"attn-head{head}.png")
        imsave(written[-1], _enlarge(each, pixels.shape), cmap="inferno")
        if threshold is not None:
            mask = attention_mask(each.flatten(), threshold).reshape(each.shape)
            written.append(folder / f"mask_th{threshold}_head{head}.png")
            imsave(written[-1], _overlay(pixels, _enlarge(mask.float(), pixels.shape) > 0))
    return written


def _enlarge(grid: "Tensor", shape: tuple[int, ...]) -> "np.ndarray":
    """A value per patch [h, w] as a value per pixel [H, W]."""
    rows, columns = (length // side for length, side in zip(shape[:2], grid.shape, strict=True))
    return grid.repeat_interleave(rows, 0).repeat_interleave(columns, 1).numpy()


def _overlay(pixels: "np.ndarray", mask: "np.ndarray") -> "np.ndarray":
    """The image with a mask [H, W] half covering it, and its outline."""
    import numpy as np
    from scipy.ndimage import binary_erosion

    colour = np.array(_MASK_RGB)
    picture = np.where(mask[:, :, None], (pixels * 0.5 + colour * 0.5), pixels)
    outline = mask & ~binary_erosion(mask, iterations=2)
    return np.where(outline[:, :, None], colour, picture).astype(np.uint8)


if __name__ == "__main__":
    main()
