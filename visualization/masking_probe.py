"""Accuracy when patches are blanked out by their rank: the masking probe (paper Sec. 4, figure 2b).

A masked pixel is 0 in normalised space, the data set's mean colour, as in the released code of June 2025. Ranks come
from a model's patch scores, or from `random_scores` as the control. No label is looked at.

Letters: B images, N = h * w patches in row-major order.
"""

import argparse
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from figure_style import finish_panels, model_panels, save_figure
from foreground_images import to_pixels
from matplotlib.figure import Figure
from measured_models import Measurement, Subject, measure_models, open_imagenet
from torch import Tensor, nn

from last_vit.data.imagenet import ImageNetDataset
from last_vit.dense import choose_global_token, dense_batches, dense_forward
from last_vit.evaluation import print_table, token_words
from last_vit.metrics.top_k import TopK
from last_vit.models import ModelArgument, naming, parse_model_arguments
from last_vit.patch_scores import patch_score
from last_vit.pooling import LaStPool

CURVES = ("top", "bottom", "random")
_LOOKS = {
    "top": ("best-scoring patches masked", "#762A83", "o"),
    "bottom": ("worst-scoring patches masked", "#1B7837", "s"),
    "random": ("random patches masked", "#777777", "^"),
}


def choose_patches(score: Tensor, share: float, order: str = "top") -> Tensor:
    """The share of every image's patches that score highest ("top"), or lowest ("bottom"): bool [B, N].

    Both count in one ranking of the score, real [B, N] without NaN, in which the first of tied patches is highest, so
    the bottom p are all but the top 1 - p. Of each image the nearest whole number to share * N is chosen, halves up.

    Example:
        >>> choose_patches(torch.tensor([[0.3, 0.9, 0.1, 0.5]]), share=0.5)
        tensor([[False,  True, False,  True]])
    """
    num_patches = score.shape[1]
    # 9 digits: 0.29 * 50 is meant to be 14.5, of which binary fractions make a little less
    num_chosen = math.floor(round(share * num_patches, 9) + 0.5)
    ranking = score.argsort(dim=1, descending=True, stable=True)
    chosen = ranking[:, :num_chosen] if order == "top" else ranking[:, num_patches - num_chosen :]
    return torch.zeros_like(score, dtype=torch.bool).scatter_(1, chosen, True)


def mask_patches(images: Tensor, drop: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """A copy of the images with all pixels of chosen patches 0.

    `images` are float [B, 3, H, W], `drop` is bool [B, N]; pixels and the grid (h, w) are as in `to_pixels`.

    Example:
        >>> mask_patches(torch.ones(1, 1, 2, 4), torch.tensor([[True, False]]), (1, 2))
        tensor([[[[0., 0., 1., 1.],
                  [0., 0., 1., 1.]]]])
    """
    pixels = to_pixels(drop.unflatten(1, grid_hw), images.shape[2:])
    return images.masked_fill(pixels[:, None], 0.0)


def random_scores(image_index: Sequence[int], num_patches: int, seed: int) -> Tensor:
    """Scores that rank patches at random, by seed and each image's place in the data set: float32 [B, N] in [0, 1)."""
    # numpy's generator takes the pair as it is; of torch's seeds the CPU generator uses the low 32 bits only
    rows = [np.random.default_rng([seed, int(index)]).random(num_patches, dtype=np.float32) for index in image_index]
    return torch.from_numpy(np.stack(rows))


class MaskedAccuracy:
    """Top-1 accuracy by what is masked: nothing, or the top, the bottom or a random p percent of the patches.

    The values of p, `percents`, are different numbers in [1, 99].
    """

    def __init__(self, percents: Sequence[int]) -> None:
        if not percents or len(set(percents)) < len(percents) or not all(0 < percent < 100 for percent in percents):
            raise ValueError(f"masked percents must be different numbers in [1, 99], got {list(percents)}")
        self.percents = tuple(percents)
        self.unmasked = TopK((1,))
        self.masked = {(curve, percent): TopK((1,)) for curve in CURVES for percent in self.percents}

    def compute(self) -> dict[str, float]:
        """Percent over all processes: "top1" of whole images, "top1_<curve>_<p>"; and "num_images"."""
        whole = self.unmasked.compute()
        found = {f"top1_{curve}_{percent}": top_k.compute()["acc1"] for (curve, percent), top_k in self.masked.items()}
        return {"top1": whole["acc1"], **found, "num_images": whole["num_images"]}


@torch.inference_mode()
def count_masked(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    device: torch.device,
    accuracy: MaskedAccuracy,
    num_classes: int,
    global_token: str = "trained",  # noqa: S107 (no password)
    last_pool: LaStPool | None = None,
    seed: int = 0,
) -> None:
    """Mask each image by the model's own patch scores of the whole image, classify it again, and count in `accuracy`.

    `batches` are `ImageNetDataset`'s; the random masks belong to their "index" and the seed. A model of another number
    of classes is a ValueError.
    """
    last_pool = last_pool or LaStPool(top_k=1)
    for output, batch in dense_batches(model, batches, device):
        images, labels, grid_hw = batch["image"], batch["label"], output.grid_hw
        if output.logits.shape[1] != num_classes:
            raise ValueError(
                f"the model answers with {output.logits.shape[1]} numbers, the images have {num_classes} classes"
            )
        score = patch_score(output.patch_tokens, choose_global_token(output, global_token, last_pool))
        noise = random_scores(batch["index"].tolist(), score.shape[1], seed).to(device)
        accuracy.unmasked.update(output.logits, labels)
        for (curve, percent), top_k in accuracy.masked.items():
            ranked, order = (noise, "top") if curve == "random" else (score, curve)
            masked = mask_patches(images, choose_patches(ranked, percent / 100, order), grid_hw)
            top_k.update(dense_forward(model, masked).logits, labels)


def run(args: argparse.Namespace) -> None:
    """The command probe_masking.py."""
    arguments, percents = parse_model_arguments(args.model), sorted(args.shares)
    MaskedAccuracy(args.shares)  # wrong ones stop here
    dataset = open_imagenet(args)
    chosen = spread_over_classes(dataset.labels, args.num_images or len(dataset), args.seed)
    for argument in arguments:
        check_classifier(argument, args, dataset)
    num_classes = len(dataset.classes)
    shown = measure_models(args, "masking_probe", partial(measure, chosen=chosen), dataset, arguments)
    if not shown:  # another process draws and prints
        return
    found = dict(shown)
    cells = [["model", "masked", "0 %", *(f"{percent} %" for percent in percents)]]
    for name, stats in found.items():
        cells += [[name, curve, *(f"{value:.1f}" for value in _curve(stats, curve, percents))] for curve in CURVES]
    print_table(cells)
    print(f"top-1 in percent, {len(chosen):,} of {len(dataset):,} images of {args.dataset_name}")
    save_figure(draw_masking(found, percents, num_classes), args.figure)


def measure(subject: Subject, chosen: Sequence[int]) -> tuple[tuple[str, dict[str, float]], list[Measurement]]:
    """One pass of a model over the chosen images."""
    args, argument, trained, dataset, device = subject
    accuracy, token = MaskedAccuracy(sorted(args.shares)), args.global_token
    num_classes, pool = len(dataset.classes), trained.selection()
    count_masked(trained.model, subject.batches(chosen), device, accuracy, num_classes, token, pool, args.seed)
    stats = accuracy.compute()
    metrics = {key: value for key, value in stats.items() if key != "num_images"}
    drawn = "" if len(chosen) == len(dataset) else f"{len(chosen)} images by seed {args.seed}, "
    config = {key: getattr(args, key) for key in ("global_token", "num_images", "seed", "batch_size")}
    found = Measurement(metrics, stats["num_images"], drawn + token_words(token, trained), config)
    return (argument.name, stats), [found]


def check_classifier(argument: ModelArgument, args: argparse.Namespace, dataset: ImageNetDataset) -> None:
    """Number the images' classes as a model does; refuse, before anything is measured, one with other classes.

    Random weights pass when they answer with as many numbers, which `count_masked` looks at.
    """
    has = None
    if argument.spec.startswith("open_clip:"):
        has = "a CLIP tower answers with an embedding"
    elif argument.seed is None:
        head = argument.load(args.image_size, args.resize).num_classes
        if head is None:
            has = "its weights hold no classifier"
        else:
            with naming(argument):
                dataset.number_as(head)
    if has is not None:
        raise ValueError(
            f"model {argument.name!r}: {has}, and the {len(dataset.classes)} classes of --imagenet-root "
            f"{args.imagenet_root} need a classifier of their own; give a model that was trained on them"
        )


def spread_over_classes(labels: np.ndarray, num_images: int, seed: int) -> list[int]:
    """Draw images, from each class as many as from any other or one more, by labels in any order: ascending indices.

    A class with too few images gives all that it has.
    """
    if num_images > len(labels):
        raise ValueError(f"--num-images must be at most {len(labels)} (images), got {num_images}")
    order = np.random.default_rng(seed).permutation(len(labels)).tolist()
    turn, drawn = {}, Counter()  # an image's place among those of its class
    for index in order:
        turn[index] = drawn[labels[index]]
        drawn[labels[index]] += 1
    return sorted(sorted(order, key=turn.get)[:num_images])


def draw_masking(found: Mapping[str, Mapping[str, float]], percents: Sequence[int], num_classes: int) -> Figure:
    """Each model's accuracies by the share of masked patches, three curves; chance is that of `num_classes`."""
    figure, panels = model_panels(len(found))
    for (name, stats), axes in zip(found.items(), panels, strict=True):
        for curve, (label, color, marker) in _LOOKS.items():
            look = {"color": color, "marker": marker, "markersize": 4, "linewidth": 1.6}
            axes.plot([0, *percents], _curve(stats, curve, percents), label=label, **look)
        axes.axhline(100 / num_classes, color="black", linestyle=":", linewidth=1.0, label="chance")
        axes.set(title=name, xlim=(-2, 100), xlabel="masked patches (%)")
        axes.set_xticks(range(0, 101, 20))
    finish_panels(figure, panels, "top-1 (%)", headroom=1.05)
    return figure


def _curve(stats: Mapping[str, float], curve: str, percents: Sequence[int]) -> list[float]:
    return [stats["top1"], *(stats[f"top1_{curve}_{percent}"] for percent in percents)]
