r"""One picture of what models look at: patch scores and votes, image by image, model beside model.

    python visualization/compare_models.py --imagenet-root data/imagenet --output results/compare.png \
        --name CLS --model conf.py --checkpoint cls.pth --name "LaSt K=1" --model conf.py --checkpoint last.pth

Rows are single-object images (drawn by --seed), columns the image with its box and, per model, its patch score and its
votes. Votes are those of LaSt's selection with the model's own K, or K = 1 for a model that is not pooled with LaSt;
the column title says which. The mark is the best patch: green when its centre lies in the box, red when it does not.
Colours run from each map's lowest to its highest value (votes from 0), so they compare patches of one image, never
images or models.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

COLORMAP = "inferno"
HIT, MISS, BOX = "#3ddc84", "#ff4d4d", "#ffffff"


@dataclass(frozen=True)
class ModelView:
    """What the picture shows of one model.

    Attributes:
        titles: Of its score column and of its vote column.
        pictures: [M, crop, crop, 3] in [0, 1], its input images.
        boxes_xyxy: [M, 4], pixels of `pictures`.
        score_maps: [M, h, w].
        vote_maps: [M, h, w].
        peaks_xy: [M, 2], centre of the best patch, pixels of `pictures`.
        is_hit: bool [M].
    """

    titles: tuple[str, str]
    pictures: "Tensor"
    boxes_xyxy: "Tensor"
    score_maps: "Tensor"
    vote_maps: "Tensor"
    peaks_xy: "Tensor"
    is_hit: "Tensor"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", action="append", required=True, help="as for evaluate_patch_hit.py; once per model")
    add("--checkpoint", action="append", required=True, help="once per model")
    add("--name", action="append", required=True, help="column title, once per model")
    add("--imagenet-root", type=Path, required=True, help="folder that holds val/, or val/ itself")
    add("--imagenet-label-dir", type=Path, help="folder of the XML boxes; default: found beside the images")
    add("--num-images", type=int, default=6, help="rows; default 6")
    add("--seed", type=int, default=0, help="which images; default 0")
    add("--image-size", type=int, help="crop in pixels; default: each model's")
    add("--resize", type=int, help="shorter side before the crop in pixels; default: each model's")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:<index>; default auto")
    add("--output", type=Path, default=Path("results/compare_models.png"), help="default results/compare_models.png")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with status 2 and one line on any error that the user can mend."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        _run(args)
    except ImportError as error:  # perhaps torch itself, without which runtime.py is not to be had
        parser.exit(2, f"compare_models.py: error: {error}\n")
    except (ValueError, OSError) as error:
        from last_vit.runtime import error_text

        parser.exit(2, f"compare_models.py: error: {error_text(error)}\n")


def _run(args: argparse.Namespace) -> None:
    # imported after parsing, so that --help needs neither torch nor any host library
    import torch

    from last_vit.data.imagenet import ImageNetDataset
    from last_vit.runtime import select_device
    from last_vit.trained_model import load_trained_model

    if not len(args.model) == len(args.checkpoint) == len(args.name):
        raise ValueError(
            f"--model, --checkpoint and --name go together, once per model; got {len(args.model)}, "
            f"{len(args.checkpoint)} and {len(args.name)} of them"
        )
    dataset = ImageNetDataset(
        args.imagenet_root, "val", boxes=True, annotation_root=args.imagenet_label_dir, single_object=True
    )
    if not 1 <= args.num_images <= len(dataset):
        raise ValueError(f"--num-images must be in [1, {len(dataset)}] (single-object images), got {args.num_images}")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(args.seed))
    chosen = order[: args.num_images].sort().values.tolist()
    device = select_device(args.device)
    views = []
    for spec, checkpoint, name in zip(args.model, args.checkpoint, args.name, strict=True):
        trained = load_trained_model(spec, checkpoint, image_size=args.image_size, resize=args.resize)
        views.append(compute_view(name, trained, dataset, chosen, device))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    show_views(views, args.output)
    print(f"written {args.output}")


def compute_view(name: str, trained: Any, dataset: Any, chosen: Sequence[int], device: Any) -> ModelView:
    """Run one model over the chosen images.

    Args:
        name: For the column titles.
        trained: A `TrainedModel`.
        dataset: An `ImageNetDataset` with boxes.
        chosen: Indices into it.
        device: Where to compute.

    Returns:
        Everything that is drawn, on the CPU.
    """
    import torch

    from last_vit.boxes import resize_crop_box
    from last_vit.data.transforms import EvalTransform, load_rgb
    from last_vit.dense import dense_forward
    from last_vit.metrics import box_patch_mask
    from last_vit.patch_score import patch_score, peak_index
    from last_vit.pooling import last_select, vote_count

    prep, pooling = trained.preprocessing, trained.pooling
    transform = EvalTransform(prep.resize, prep.crop, prep.mean, prep.std, prep.interpolation)
    images = torch.stack([transform(load_rgb(dataset.image_paths[i])) for i in chosen])
    top_k = pooling.get("top_k") or 1
    with torch.inference_mode():
        output = dense_forward(trained.model.to(device), images.to(device))
        score = patch_score(output.patch_tokens, output.global_token).cpu()
        topk_idx = last_select(output.patch_tokens, top_k, pooling.get("sigma"), pooling.get("variant") or "release")
        votes = vote_count(topk_idx, score.shape[1]).cpu()
    boxes, image_hw = torch.tensor(dataset.boxes_xyxy[chosen]), torch.tensor(dataset.image_hw[chosen])
    peak, (height, width) = peak_index(score), output.grid_hw
    inside = box_patch_mask(boxes, image_hw, output.grid_hw, prep.crop, prep.resize, "center")
    centers = torch.stack([(peak % width + 0.5) / width, (peak // width + 0.5) / height], dim=1) * prep.crop
    mean, std = (torch.tensor(values)[:, None, None] for values in (prep.mean, prep.std))
    return ModelView(
        titles=(f"{name}\npatch score", f"{name}\nvotes, K = {top_k}"),
        pictures=(images * std + mean).clamp(0, 1).permute(0, 2, 3, 1),
        boxes_xyxy=resize_crop_box(boxes, image_hw, prep.resize, prep.crop),
        score_maps=score.unflatten(1, output.grid_hw),
        vote_maps=votes.unflatten(1, output.grid_hw),
        peaks_xy=centers,
        is_hit=inside.gather(1, peak[:, None]).squeeze(1),
    )


def show_views(views: Sequence[ModelView], path: Path, cell_inches: float = 1.7) -> None:
    """Draw the picture.

    Args:
        views: One per model, of the same images.
        path: PNG to write.
        cell_inches: Side of one panel.
    """
    # a Figure without pyplot always draws with Agg, whatever display there is
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    num_rows, num_columns = len(views[0].pictures), 1 + 2 * len(views)
    figure = Figure(figsize=(cell_inches * num_columns, cell_inches * num_rows + 0.6), dpi=150, layout="compressed")
    figure.get_layout_engine().set(w_pad=0.025, h_pad=0.025, wspace=0, hspace=0)
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    for row in range(num_rows):
        _draw_image(axes[row, 0], views[0], row, box_width=2.0)
        for column, view in enumerate(views):
            score, votes = axes[row, 1 + 2 * column], axes[row, 2 + 2 * column]
            _draw_map(score, view, row, view.score_maps[row], float(view.score_maps[row].min()))
            _draw_peak(score, view, row)
            _draw_map(votes, view, row, view.vote_maps[row], 0.0)
    axes[0, 0].set_title("image and box", fontsize=9)
    for column, view in enumerate(views):
        for offset, title in enumerate(view.titles):
            axes[0, 1 + 2 * column + offset].set_title(title, fontsize=9)
    legend = [
        Line2D([], [], marker="o", linestyle="", color=color, markeredgecolor="black", markersize=6, label=label)
        for color, label in ((HIT, "best patch, in the box"), (MISS, "best patch, outside"))
    ]
    scale = [Patch(color=colormaps[COLORMAP](level), label=label) for level, label in ((0.05, "low"), (0.95, "high"))]
    figure.legend(
        handles=[*legend, *scale], loc="outside lower center", ncols=4, fontsize=8, frameon=False, handletextpad=0.4
    )
    figure.savefig(path, facecolor="white")


def _draw_image(axes: "Axes", view: ModelView, row: int, box_width: float, grey: bool = False) -> None:
    side = view.pictures.shape[1]
    picture = view.pictures[row]
    if grey:  # so that the map has the colours to itself
        picture = picture.mean(dim=2, keepdim=True).expand(-1, -1, 3)
    axes.imshow(picture.numpy(), extent=(0, side, side, 0))
    x1, y1, x2, y2 = view.boxes_xyxy[row].clamp(0, side).tolist()
    for color, extra in (("black", 1.2), (BOX, 0.0)):  # a dark rim keeps the box visible on bright ground
        axes.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color=color, linewidth=box_width + extra, clip_on=False)
    axes.set(xlim=(0, side), ylim=(side, 0), xticks=[], yticks=[])
    axes.set_frame_on(False)


def _draw_map(axes: "Axes", view: ModelView, row: int, values: "Tensor", lowest: float) -> None:
    side = view.pictures.shape[1]
    highest = max(float(values.max()), lowest + 1e-12)
    _draw_image(axes, view, row, box_width=0.8, grey=True)
    axes.imshow(values.numpy(), cmap=COLORMAP, alpha=0.7, vmin=lowest, vmax=highest, extent=(0, side, side, 0))


def _draw_peak(axes: "Axes", view: ModelView, row: int) -> None:
    x, y = view.peaks_xy[row].tolist()
    color = HIT if view.is_hit[row] else MISS
    axes.plot(x, y, "o", markersize=7, markerfacecolor=color, markeredgecolor="black", markeredgewidth=1.2)


if __name__ == "__main__":
    main()
