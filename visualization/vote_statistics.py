"""Where LaSt's votes fall: on the object or beside it, on few patches or many, and at which positions (paper Fig. 5).

Votes are those of `vote_count`: v_i channels chose patch i, and every image's votes sum to K * D. Each number stands
beside the one that uniform voting would give, for on large objects a high share of votes inside says little.

Letters: B images, N = h * w patches in row-major order, L levels.
"""

import argparse
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import torch
from figure_style import hide_ticks, new_figure, save_figure
from foreground_images import patch_foreground, patch_groups
from map_figures import choose_images
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from measured_models import Measurement, Subject, measure_models
from torch import Tensor

from last_vit.dense import dense_batches, dense_forward
from last_vit.evaluation import print_metrics
from last_vit.metrics.summed_counters import SummedTensors
from last_vit.pooling import last_select, resolve_top_k, vote_count

LEVELS = (0.5, 0.3, 0.2)
_COLORMAP = "PuOr_r"  # two-sided: below uniform purple, above it orange
_COLUMNS = {
    "votes_inside": "inside %",
    "votes_inside_uniform": "uniform %",
    "votes_lift": "lift",
    "top_vote_inside": "top patch inside %",
    "vote_area_50": "patches > max / 2 %",
    "position_peak": "peak position",
}


def vote_levels(votes: Tensor, levels: Sequence[float] = LEVELS) -> Tensor:
    """The patches with more than a share of their image's maximal vote (paper Fig. 5: 50, 30 and 20 %).

    `votes` are real [B, N], not negative, `levels` shares in [0, 1): bool [B, L, N]. Every image with a vote has one
    above every level.

    Example:
        >>> vote_levels(torch.tensor([[8, 4, 2, 0]]), levels=(0.5, 0.2))
        tensor([[[ True, False, False, False],
                 [ True,  True,  True, False]]])
    """
    # a quotient, because it is the level itself where the two tie (7 of 10 at 0.7), and the product 0.7 * 10 is not 7
    votes = votes.double()
    highest = votes.amax(dim=1, keepdim=True)
    share = votes / highest.masked_fill(highest == 0, 1.0)
    return share[:, None, :] > torch.tensor(levels, dtype=torch.float64, device=votes.device)[:, None]


class VoteStatistics:
    """Where votes fall, streaming and summed over all processes; `grid_hw` is (h, w) of the patch grid."""

    def __init__(self, grid_hw: tuple[int, int]) -> None:
        self.grid_hw = grid_hw
        self._sums = SummedTensors(
            num_images=(),
            position=grid_hw,
            area=(len(LEVELS),),
            num_object_images=(),  # that show both, over which are the following, in pairs (background, object)
            votes=(2,),
            patches=(2,),
            top=(),
            level_patches=(len(LEVELS), 2),
        )

    def update(self, votes: Tensor, is_foreground: Tensor, is_known: Tensor) -> None:
        """Count votes, real [B, N], of the patches of `patch_foreground`."""
        votes = votes.double()
        share = votes / votes.sum(dim=1, keepdim=True)
        above = vote_levels(votes)
        groups, shows_both = patch_groups(is_foreground, is_known)
        groups = (groups & shows_both[:, None, None]).double()
        is_top_inside = best_inside(share[:, None], is_foreground & is_known, is_known)[:, 0]
        self._sums.add(
            num_images=torch.tensor(len(votes), device=votes.device),
            position=share.sum(dim=0).reshape(self.grid_hw),
            area=above.sum(dim=(0, 2)),
            num_object_images=shows_both.sum(),
            votes=torch.einsum("bn,bgn->g", share, groups),
            patches=groups.sum(dim=(0, 2)),
            top=(is_top_inside * shows_both).sum(),
            level_patches=torch.einsum("bln,bgn->lg", above.double(), groups),
        )

    def compute(self) -> dict[str, float]:
        """Statistics over everything counted by all processes, at least one image; shares in percent.

        Over all images: "vote_area_<level>" for every level in percent ("vote_area_50"), the mean share of patches
        above it; "position_peak", the largest of `frequency` over the uniform 1 / N; "num_images". Over the
        "num_object_images" that show both object and background, their votes and patches together: "votes_inside", the
        share of the votes on known patches that lie on the object; "votes_inside_uniform", the object's share of those
        patches; "votes_lift", the first over the second; "vote_area_<level>_inside", the object's share of the patches
        above the level; and "top_vote_inside", how often the patch with the most votes is object (ties in equal parts).
        """
        totals = self._sums.totals()
        num_images, num_patches = int(totals["num_images"]), totals["position"].numel()
        names = [f"vote_area_{100 * level:g}" for level in LEVELS]
        areas = 100 * totals["area"] / (num_images * num_patches)
        found = dict(zip(names, areas.tolist(), strict=True))
        found["position_peak"] = float(totals["position"].max()) * num_patches / num_images
        found["num_images"] = num_images
        num_object_images, known_votes = int(totals["num_object_images"]), float(totals["votes"].sum())
        if not num_object_images or not known_votes:
            return found
        inside = float(totals["votes"][1]) / known_votes
        uniform = float(totals["patches"][1] / totals["patches"].sum())
        found |= {
            "votes_inside": 100 * inside,
            "votes_inside_uniform": 100 * uniform,
            "votes_lift": inside / uniform,
            "top_vote_inside": 100 * float(totals["top"]) / num_object_images,
        }
        for name, (background, front) in zip(names, totals["level_patches"].tolist(), strict=True):
            if background + front:  # all patches above a level can be unknown ones
                found[f"{name}_inside"] = 100 * front / (background + front)
        return found | {"num_object_images": num_object_images}

    def frequency(self) -> Tensor:
        """Share of all votes that each position gets, mean over the images: float64 [h, w]; as `compute`."""
        totals = self._sums.totals()
        return totals["position"] / totals["num_images"]


def best_inside(scores: Tensor, inside: Tensor, known: Tensor) -> Tensor:
    """Whether the best known patch is inside, where several tie the share of them: [B, R, N], bool [B, N] -> [B, R]."""
    scores = scores.masked_fill(~known[:, None], -torch.inf)
    is_best = (scores == scores.amax(dim=2, keepdim=True)).double()
    return (is_best * inside[:, None]).sum(dim=2) / is_best.sum(dim=2)


class SelectionView(NamedTuple):
    """What is drawn and printed of one model and one K."""

    name: str
    k: int  # patches kept per channel
    frequency: Tensor  # float64 [h, w], share of all votes, sums to 1
    metrics: dict[str, float]  # of `VoteStatistics`
    num_images: int  # that there are, of which `metrics` are over the drawn ones


def run(args: argparse.Namespace) -> None:
    """The command visualize_token_selection.py."""
    has_objects = args.boxes is not None or args.masks is not None
    if args.imagenet_label_dir is not None and (args.imagenet_root is None or has_objects):
        raise ValueError("--imagenet-label-dir goes with --imagenet-root, and with neither --boxes nor --masks")
    rows = measure_models(args, "votes", measure)
    if not rows:  # another process draws and prints
        return
    views = [view for row in rows for view in row]
    lines = [([view.name, f"{view.k} of {view.frequency.numel()}"], view.metrics) for view in views]
    print_metrics(["model", "K"], _COLUMNS, lines, ".4g")
    counted = views[0].metrics
    with_object = counted.get("num_object_images")
    inside = "" if with_object is None else f"; inside: over the {with_object} that show both object and background"
    print(f"{counted['num_images']} of {views[0].num_images} images{inside}")
    save_figure(draw_rows(rows), args.figure)


def measure(subject: Subject) -> tuple[list[SelectionView], list[Measurement]]:
    """One pass of a model over the images drawn by --seed: votes per K of --k."""
    args, argument, trained, images, device = subject
    chosen = choose_images(len(images), min(args.num_images, len(images)), args.seed, "--num-images")
    crop = trained.preprocessing.crop
    with torch.inference_mode():  # the grid, for every process, also one that gets no image
        grid_hw = dense_forward(trained.model, torch.zeros(1, 3, crop, crop, device=device)).grid_hw
    kept = [resolve_top_k(k, grid_hw[0] * grid_hw[1]) for k in args.k]
    if len(set(kept)) < len(kept):
        raise ValueError(f"--k {args.k} gives {kept} patches, of which some are the same")
    counted = [(trained.selection(top_k=k), VoteStatistics(grid_hw)) for k in kept]
    for output, batch in dense_batches(trained.model, subject.batches(chosen), device):
        is_foreground, is_known = patch_foreground(batch["foreground"], grid_hw)
        for pool, statistics in counted:
            topk_idx = last_select(output.patch_tokens, pool.top_k, pool.sigma, pool.variant)
            statistics.update(vote_count(topk_idx, output.patch_tokens.shape[1]), is_foreground, is_known)
    source = "masks, " if args.masks else "boxes, " if args.boxes else ""
    views, found = [], []
    for asked, (pool, statistics) in zip(args.k, counted, strict=True):
        view = SelectionView(argument.name, pool.top_k, statistics.frequency(), statistics.compute(), len(images))
        metrics = {key: value for key, value in view.metrics.items() if key != "num_images"}
        protocol = f"{source}votes of K = {view.k} of {view.frequency.numel()}"
        config = {"seed": args.seed, "variant": pool.variant, "k": asked, "grid_hw": list(grid_hw)}
        views.append(view)
        found.append(Measurement(metrics, int(view.metrics["num_images"]), protocol, config))
    return views, found


def draw_rows(rows: Sequence[Sequence[SelectionView]]) -> Figure:
    """Rows of models, columns of K; one scale per row, in units of the uniform share, which is white."""
    figure, axes = new_figure(len(rows), len(rows[0]), width=2.6, height=3.0)
    figure.get_layout_engine().set(h_pad=0.1)
    for views, panels in zip(rows, axes, strict=True):
        hide_ticks(panels)
        maps = [view.frequency * view.frequency.numel() for view in views]
        # to twice the uniform share at least, so that small differences look small
        highest = max(2.0, *(float(values.max()) for values in maps))
        scale = TwoSlopeNorm(vmin=0, vcenter=1, vmax=highest)
        for view, values, panel in zip(views, maps, panels, strict=True):
            shown = panel.imshow(values.numpy(), cmap=_COLORMAP, norm=scale, interpolation="nearest")
            title = "\n".join(textwrap.wrap(view.name, 20))  # a narrow panel; longer names would be cut off
            panel.set_title(f"{title}\nK = {view.k} of {values.numel()}")
            panel.set_xlabel(_caption(view.metrics, values), fontsize=8)
            panel.set_frame_on(True)
            for spine in panel.spines.values():
                spine.set(visible=True, color="0.7", linewidth=0.8)
        bar = figure.colorbar(shown, ax=list(panels), shrink=0.8, pad=0.02, ticks=[0, 1, highest])
        bar.ax.set_yticklabels(["0", "uniform", f"{highest:.3g} x"], fontsize=8)
        bar.ax.axhline(1, color="black", linewidth=1)
    return figure


def _caption(metrics: dict[str, float], values: Tensor) -> str:
    spread = f"{values.min():.2f} to {values.max():.2f} x uniform"
    if "votes_inside" not in metrics:
        return spread
    return f"{spread}\ninside {metrics['votes_inside']:.1f} %, uniform {metrics['votes_inside_uniform']:.1f} %"
