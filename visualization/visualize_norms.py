r"""Norms of patch tokens: by layer, at the output, against patch score, and on images (paper figures 6, 8, 9, 13, 14).

    python visualization/visualize_norms.py --images coco/val2017 --masks coco/annotations/instances_val2017.json \
        --model CLS=cls_pretrain/conf.py@cls.pth --model LaSt=cls_pretrain/conf.py@last.pth --figure results/norms.png

One row of panels per model: the norms after every block and after the final norm; those of the output before the final
norm, with the cut-off above which a patch is an outlier (--cutoff, or fitted: see last_vit/metrics/patch_norms.py), for
foreground and background where annotated; and norm against patch score, with their correlation. A second picture,
<figure>_examples, shows score and norm on images drawn by --seed; outliers are framed. A ConvNet has no blocks: its one
layer is the last feature map, and no norm stands behind it.
"""

import argparse
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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

from last_vit.command_line import command_parser, run_command_line

if TYPE_CHECKING:
    import torch
    from foreground_images import ForegroundImages
    from norm_figures import ExampleView, NormView

    from last_vit.metrics.patch_norms import PatchNorms
    from last_vit.models import TrainedModel

_COUNTS = ("num_images", "num_patches", "num_outside", "num_constant_maps", "num_split_images")
_COLUMNS = {
    "norm_median": "median",
    "norm_max": "max",
    "cutoff": "cut-off",
    "outlier_share": "outliers %",
    "high_norm": "high norm",
    "correlation": "r in image",
    "correlation_pooled": "r pooled",
    "norm_ratio": "fg / bg",
    "foreground_higher": "fg higher %",
    "outliers_in_background": "outliers in bg %",
    "background_share": "bg patches %",
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("visualize_norms.py", __doc__)
    add_model_flags(parser)
    add_image_flags(parser)
    add_loading_flags(parser)
    add_output_flags(parser, "results/norms.png")
    add = parser.add_argument
    add("--cutoff", type=float, help="smallest norm of an outlier, for all models; default: fitted to each model")
    add("--examples", type=int, help="images of the second picture, 0 for none; default 6, or all there are")
    add("--seed", type=int, default=0, help="which images; default 0")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with status 2 and one line on any error that the user can mend."""
    run_command_line(build_parser(), _run, argv)


def _run(args: argparse.Namespace) -> None:
    from example_images import choose_images
    from figure_style import save_figure
    from norm_figures import draw_examples, draw_norms

    from last_vit.models import parse_model_arguments
    from last_vit.runtime import is_main_process, process_group

    views, examples, rows = [], [], {}
    with process_group(args.device) as device:
        for argument in parse_model_arguments(args.model):
            trained = argument.load(args.image_size, args.resize)
            images = open_images(args, trained.preprocessing)
            chosen = choose_images(len(images), args.examples, args.seed, "--examples")
            trained.model.to(device)
            start = time.perf_counter()
            view = measure(argument.name, trained, images, args, device)
            seconds = time.perf_counter() - start
            if not is_main_process():
                continue
            metrics = {key: value for key, value in view.stats.items() if key not in _COUNTS}
            counts = {key: value for key, value in view.stats.items() if key in _COUNTS}
            write_model_result(
                args,
                "norms",
                argument,
                trained,
                metrics,
                n_images=int(view.stats["num_images"]),
                protocol="cut-off fitted" if args.cutoff is None else f"cut-off {args.cutoff:g}",
                config={**counts, "num_layers": len(view.layers), "left_out": dict(images.skipped)},
                seconds=seconds,
                device=device,
            )
            views.append(view)
            rows[argument.name] = view.stats
            if chosen:
                examples.append(show_examples(argument.name, trained, images, chosen, view.stats["cutoff"], device))
        if not is_main_process():
            return
        _print_rows(rows)
        save_figure(draw_norms(views), args.figure)
        print(f"written {args.figure}")
        if examples:
            path = args.figure.with_stem(f"{args.figure.stem}_examples")
            save_figure(draw_examples(examples), path)
            print(f"written {path}")


def measure(
    name: str, trained: "TrainedModel", images: "ForegroundImages", args: argparse.Namespace, device: "torch.device"
) -> "NormView":
    """One pass of a model over the images.

    Args:
        name: Of the model, for panels.
        trained: On `device`.
        images: What to measure on.
        args: With `cutoff` and the flags of `add_loading_flags`.
        device: Where to compute.

    Returns:
        Everything that is drawn and written, the same in every process.

    Raises:
        ValueError: As `PatchNorms`; the message names the model.
    """
    from norm_figures import NormView
    from patch_foreground import patch_foreground

    from last_vit.dense import dense_batches
    from last_vit.layer_tokens import count_layers, layer_tokens
    from last_vit.metrics.patch_norms import PatchNorms, token_norms
    from last_vit.patch_scores import patch_score

    num_layers, has_final_norm = count_layers(trained.model)
    layers = [PatchNorms() for _ in range(num_layers - 1)] + [PatchNorms(args.cutoff)]
    normed = PatchNorms()
    for tokens, batch in dense_batches(trained.model, open_loader(args, images, name), device, layer_tokens):
        output = tokens.output
        score = patch_score(output.patch_tokens, output.global_token)
        foreground, known = patch_foreground(batch["foreground"], output.grid_hw)
        for norms, patch_tokens in zip(layers[:-1], tokens.layers[:-1], strict=True):
            norms.update(token_norms(patch_tokens))
        layers[-1].update(token_norms(tokens.layers[-1]), score, foreground if images.has_foreground else None, known)
        normed.update(token_norms(output.patch_tokens))
    try:
        stats = layers[-1].compute()
    except ValueError as error:
        raise ValueError(f"model {name!r}: {error} (--cutoff)") from error
    return NormView(name, stats, *_histograms(layers, normed if has_final_norm else None, "norm_ratio" in stats))


def _histograms(layers: "list[PatchNorms]", normed: "PatchNorms | None", has_split: bool) -> tuple[Any, ...]:
    """What `NormView` holds behind its statistics, as arrays."""
    import numpy as np

    edges = layers[-1].histogram()[0].numpy()
    counts = np.stack([layer.histogram()[1].numpy() for layer in layers])
    split = tuple(part.numpy() for part in layers[-1].split_histogram()[1:])
    joint = tuple(part.numpy() for part in layers[-1].joint_histogram())
    return edges, counts, None if normed is None else normed.histogram()[1].numpy(), split if has_split else None, joint


def show_examples(
    name: str,
    trained: "TrainedModel",
    images: "ForegroundImages",
    chosen: Sequence[int],
    cutoff: float,
    device: "torch.device",
) -> "ExampleView":
    """Scores and norms of a model on chosen images.

    Args:
        name: Of the model, for panels.
        trained: On `device`.
        images: Where they are taken from.
        chosen: Indices into `images`.
        cutoff: Norm from which a patch is framed.
        device: Where to compute.
    """
    import torch
    from example_images import load_examples
    from norm_figures import ExampleView
    from patch_foreground import patch_foreground

    from last_vit.layer_tokens import layer_tokens
    from last_vit.metrics.patch_norms import token_norms
    from last_vit.patch_scores import patch_score

    examples = load_examples(images, chosen, trained.preprocessing)
    with torch.inference_mode():
        tokens = layer_tokens(trained.model, examples.inputs.to(device))
        score = patch_score(tokens.output.patch_tokens, tokens.output.global_token).cpu()
        norms = token_norms(tokens.layers[-1]).cpu()
    grid_hw = tokens.output.grid_hw
    is_foreground, is_known = patch_foreground(examples.foregrounds, grid_hw)
    captions = []
    for row, front, known in zip(norms, is_foreground, is_known, strict=True):
        caption = f"{row.min():.3g} to {row.max():.3g}"
        if (front & known).any() and (~front & known).any():
            caption += f", fg / bg {row[front & known].mean() / row[~front & known].mean().clamp_min(1e-12):.2f}"
        captions.append(caption)
    return ExampleView(
        name=name,
        images=examples,
        scores=score.unflatten(1, grid_hw).numpy(),
        norms=norms.unflatten(1, grid_hw).numpy(),
        captions=captions,
        cutoff=cutoff,
    )


def _print_rows(rows: dict[str, Any]) -> None:
    keys = [key for key in _COLUMNS if any(key in stats for stats in rows.values())]
    cells = [["model", *(_COLUMNS[key] for key in keys)]]
    for name, stats in rows.items():
        cells.append([name, *(_cell(key, stats) for key in keys)])
    print_table(cells)
    for name, stats in rows.items():
        notes = [
            f"{stats[key]:g} {words}"
            for key, words in (
                ("num_outside", "norms outside the histogram's range"),
                ("num_constant_maps", "images without correlation, their map is constant"),
            )
            if stats.get(key)
        ]
        print(
            f"{name}: {int(stats['num_images'])} images, {int(stats['num_patches'])} patches"
            + "".join(f", {note}" for note in notes)
        )


def _cell(key: str, stats: dict[str, float]) -> str:
    if key not in stats:
        return "-"
    return ("yes" if stats[key] else "no") if key == "high_norm" else f"{stats[key]:.4g}"


if __name__ == "__main__":
    main()
