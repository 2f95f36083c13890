r"""First three principal components of the foreground's patch features as colours (paper figure 7).

    python visualization/visualize_pca.py --images coco/val2017 --masks coco/annotations/instances_val2017.json \
        --model CLS=cls_pretrain/conf.py@cls.pth --model LaSt=cls_pretrain/conf.py@last.pth --figure results/pca.png

Rows are images, columns models. Foreground are the patches that are object by --boxes or --masks; without annotations
those whose patch score is above the image's mean, as in the paper's coarse segmentation: the model's own idea of its
foreground, which for a model with score artifacts is the background. The rest shows the image, dark and grey. --fit
image takes the components of each image alone, --fit set those of the foreground of all images, one colour code for all
rows. Colours compare patches under one fit, never models: of a component even the sign is arbitrary.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diagnostic_cli import (
    add_image_flags,
    add_loading_flags,
    add_model_flags,
    add_output_flags,
    open_images,
    open_loader,
    print_table,
    write_model_result,
)

from last_vit.command_line import command_parser, positive, run_command_line

if TYPE_CHECKING:
    import torch
    from example_images import ExampleImages
    from foreground_images import ForegroundImages
    from matplotlib.figure import Figure
    from patch_pca import PatchPCA
    from torch import Tensor

    from last_vit.adapters import DenseOutput
    from last_vit.models import TrainedModel

_MIN_PATCHES = 3


@dataclass(frozen=True)
class PCAView:
    """What is drawn and written of one model.

    Attributes:
        name: Of the model.
        images: As the model takes them.
        maps: float32 [M, h, w, 4], colour and 1 on the foreground, 0 in the last channel elsewhere.
        explained: Share of the fitted variance per component, three values in [0, 1]; with a fit per image, their mean.
        num_fitted: Images that the components are of.
        num_too_few: Images without a fit of their own, for want of foreground patches.
    """

    name: str
    images: "ExampleImages"
    maps: "Tensor"
    explained: tuple[float, float, float]
    num_fitted: int
    num_too_few: int


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("visualize_pca.py", __doc__)
    add_model_flags(parser)
    add_image_flags(parser)
    add_loading_flags(parser)
    add_output_flags(parser, "results/pca.png")
    add = parser.add_argument
    add("--fit", choices=("image", "set"), default="image", help="what the components are of; default image")
    add("--num-images", type=positive, help="rows; default 6, or all images there are")
    add("--seed", type=int, default=0, help="which images; default 0")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with status 2 and one line on any error that the user can mend."""
    run_command_line(build_parser(), _run, argv)


def _run(args: argparse.Namespace) -> None:
    from example_images import choose_images
    from figure_style import save_figure

    from last_vit.models import parse_model_arguments
    from last_vit.runtime import is_main_process, process_group

    views = []
    with process_group(args.device) as device:
        for argument in parse_model_arguments(args.model):
            trained = argument.load(args.image_size, args.resize)
            images = open_images(args, trained.preprocessing)
            chosen = choose_images(len(images), args.num_images, args.seed, "--num-images")
            trained.model.to(device)
            start = time.perf_counter()
            view = compute_view(argument.name, trained, images, chosen, args, device)
            seconds = time.perf_counter() - start
            views.append(view)
            if is_main_process():
                write_model_result(
                    args,
                    "pca",
                    argument,
                    trained,
                    {f"explained_{i}": 100 * share for i, share in enumerate(view.explained, start=1)},
                    n_images=view.num_fitted,
                    protocol=f"fitted per {args.fit}",
                    config={
                        "foreground": "annotations" if images.has_foreground else "patch score above its mean",
                        "seed": args.seed,
                        "num_too_few_patches": view.num_too_few,
                        "left_out": dict(images.skipped),
                    },
                    seconds=seconds,
                    device=device,
                )
        if not is_main_process():
            return
    _print_rows(views)
    save_figure(draw_views(views), args.figure)
    print(f"written {args.figure}")


def compute_view(
    name: str,
    trained: "TrainedModel",
    images: "ForegroundImages",
    chosen: Sequence[int],
    args: argparse.Namespace,
    device: "torch.device",
) -> PCAView:
    """Fit the components of one model and colour the chosen images with them.

    Args:
        name: Of the model.
        trained: On `device`.
        images: Of which the components are, for `--fit set`.
        chosen: Indices into `images`, the rows.
        args: With `fit` and the flags of `add_loading_flags`.
        device: Where to compute.

    Raises:
        ValueError: No image, or the whole set, with three foreground patches.
    """
    import torch
    from example_images import load_examples

    from last_vit.dense import dense_forward

    examples = load_examples(images, chosen, trained.preprocessing)
    with torch.inference_mode():
        output = dense_forward(trained.model, examples.inputs.to(device))
        masks = foreground_patches(output, examples.foregrounds.to(device), images.has_foreground).cpu()
    tokens = output.patch_tokens.cpu()
    if args.fit == "set":
        whole = _fit_set(name, trained, images, tokens.shape[2], args, device)
        fits, num_fitted = [whole] * len(masks), len(images)
    else:
        fits = [_fit_image(image_tokens, mask) for image_tokens, mask in zip(tokens, masks, strict=True)]
        num_fitted = sum(fit is not None for fit in fits)
    if num_fitted == 0:
        raise ValueError(
            f"model {name!r}: none of the {len(fits)} images has {_MIN_PATCHES} foreground patches on the grid of "
            f"{output.grid_hw}; take --fit set, more images, or a larger --image-size"
        )
    maps = torch.zeros(*masks.shape, 4)
    for colours, image_tokens, mask, fit in zip(maps, tokens, masks, fits, strict=True):
        if fit is not None:
            colours[mask] = torch.cat([fit.rgb(image_tokens[mask]), torch.ones(int(mask.sum()), 1)], dim=1)
    known = [fit.explained for fit in fits if fit is not None]
    return PCAView(
        name=name,
        images=examples,
        maps=maps.unflatten(1, output.grid_hw),
        explained=tuple(torch.stack(known).mean(dim=0).tolist()),
        num_fitted=num_fitted,
        num_too_few=len(fits) - len(known),
    )


def foreground_patches(output: "DenseOutput", foreground: "Tensor", has_foreground: bool) -> "Tensor":
    """The patches that are coloured.

    Args:
        output: Of a model, for B images.
        foreground: uint8 [B, S, S], as `ForegroundImages` gives it.
        has_foreground: Whether it says anything; else the patch score decides.

    Returns:
        bool [B, N].
    """
    from patch_foreground import patch_foreground

    from last_vit.patch_scores import patch_score, threshold_mask

    if has_foreground:
        return patch_foreground(foreground, output.grid_hw)[0]
    return threshold_mask(patch_score(output.patch_tokens, output.global_token), num_std=0.0)


def _fit_image(tokens: "Tensor", mask: "Tensor") -> "PatchPCA | None":
    from patch_pca import fit_patch_pca

    return fit_patch_pca(tokens[mask]) if int(mask.sum()) >= _MIN_PATCHES else None


def _fit_set(
    name: str,
    trained: "TrainedModel",
    images: "ForegroundImages",
    num_channels: int,
    args: argparse.Namespace,
    device: "torch.device",
) -> "PatchPCA":
    from patch_pca import PatchMoments

    from last_vit.dense import dense_batches

    moments = PatchMoments(num_channels)
    for output, batch in dense_batches(trained.model, open_loader(args, images, name), device):
        mask = foreground_patches(output, batch["foreground"], images.has_foreground)
        moments.update(output.patch_tokens[mask])
    try:
        return moments.fit()
    except ValueError as error:
        raise ValueError(f"model {name!r}, foreground of {len(images)} images: {error}") from error


def draw_views(views: Sequence[PCAView]) -> "Figure":
    """Rows of images, columns of models; patches with hard edges, because that is what they are."""
    from example_images import draw_picture
    from figure_style import hide_ticks, house_style, new_figure

    figure, axes = new_figure(len(views[0].maps), 1 + len(views), width=1.9, height=1.9)
    with house_style():
        for row, panels in enumerate(axes):
            hide_ticks(panels)
            draw_picture(panels[0], views[0].images.pictures[row], views[0].images.foregrounds[row])
            for panel, view in zip(panels[1:], views, strict=True):
                picture = view.images.pictures[row]
                extent = (0, len(picture), len(picture), 0)
                panel.imshow(picture.mean(axis=2) * 0.35, cmap="gray", vmin=0, vmax=1, extent=extent)
                panel.imshow(view.maps[row].numpy(), interpolation="nearest", extent=extent)
                if not view.maps[row, ..., 3].any():
                    panel.set_xlabel("too few foreground patches", fontsize=7)
        axes[0][0].set_title("image")
        for panel, view in zip(axes[0][1:], views, strict=True):
            panel.set_title(view.name)
    return figure


def _print_rows(views: Sequence[PCAView]) -> None:
    cells = [["% of variance", "component 1", "2", "3", "images", "with too few foreground patches"]]
    for view in views:
        shares = [f"{100 * share:.1f}" for share in view.explained]
        cells.append([view.name, *shares, str(view.num_fitted), str(view.num_too_few)])
    print_table(cells)


if __name__ == "__main__":
    main()
