"""Point-in-Box, AUROC and high norms after every block of a model; CorLoc of score, votes and their product at the end.

One forward pass per image serves all layers; nothing is kept but sums.

Letters: B images, N patches, L layers (blocks, then the final norm), V numbers of kept patches, R scores, F of them at
the end.
"""

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from figure_style import save_figure
from foreground_images import patch_areas, patch_foreground, patch_groups
from layer_figures import LayerView, draw_layers, print_layers
from layer_tokens import LayerTokens, count_layers, layer_tokens
from measured_models import Measurement, Subject, check_image_flags, measure_models, open_boxes, open_images
from patch_norms import token_norms
from point_in_box_protocol import is_numbered
from score_distribution import auroc, min_max
from torch import Tensor
from torch.nn import functional as F
from vote_statistics import best_inside

from last_vit.boxes import box_iou, is_small_box, largest_component, patch_box, resize_crop_box
from last_vit.dense import dense_batches, dense_forward
from last_vit.metrics import PointInBox, TopK, box_patch_mask
from last_vit.metrics.summed_counters import SummedTensors
from last_vit.models import TrainedModel
from last_vit.patch_scores import patch_score, threshold_mask
from last_vit.pooling import last_select, vote_count
from last_vit.preprocessing import Preprocessing
from last_vit.token_pool import TokenPool

SMALL, MIN_IOU = 0.25, 0.5  # share of the image; CorLoc's overlap
HIGH_NORM = 3.0  # times the image's median
MIN_PERCENT = 0.05  # share of the patches from which on it is said where they lie
_LEARNED = re.compile(r"Attention\w*Pool")  # timm's, open_clip's and Hugging Face's classes
_MEASURES, _GROUPS = ("point_in_box", "auroc"), ("", "_small")


class Truth(NamedTuple):
    """What is known of a batch of images, on the crop."""

    inside: Tensor  # bool [B, N], patches in the box, or on an object
    known: Tensor  # bool [B, N], patches of which that is known
    center: Tensor  # float64 [B], share of the image's centre that is inside
    counts: Tensor  # bool [2, B], images among all, and among those of small objects
    box_xyxy: Tensor  # float64 [B, 4], in the crop's pixels; NaN without exactly one object
    areas: Tensor | None = None  # of each patch, object and all that is known, as `patch_areas` [B, 2, N]


def find_truth(batch: Mapping[str, Tensor], grid_hw: tuple[int, int], prep: Preprocessing, hit_rule: str) -> Truth:
    """From samples of an `ImageNetDataset` with one box each, or of `ForegroundImages`, which need no `hit_rule`."""
    boxes, image_hw, areas = batch["box_xyxy"], batch["image_hw"], None
    if "foreground" in batch:
        areas = torch.stack(patch_areas(batch["foreground"], grid_hw), dim=1)
        inside, known = patch_foreground(batch["foreground"], grid_hw)
        counts = inside.any(dim=1) & (known & ~inside).any(dim=1)
        is_small = inside.sum(dim=1) < SMALL * known.sum(dim=1)
        hit_rule = "release"  # the centre is that of the patches
    else:
        inside = box_patch_mask(boxes, image_hw, grid_hw, prep.crop, prep.resize, hit_rule)
        known, counts = torch.ones_like(inside), ~boxes.isnan().any(dim=1)
        is_small = is_small_box(boxes, image_hw, SMALL)
    center = PointInBox(prep.crop, prep.resize, hit_rule).center_hits(inside, boxes, image_hw, grid_hw)
    box_xyxy = resize_crop_box(boxes, image_hw, prep.resize, prep.crop).clamp(0, prep.crop)
    return Truth(inside, known, center, torch.stack([counts, counts & is_small]), box_xyxy, areas)


class LayerScores:
    """Reads a batch's scores, norms and votes.

    `trained` is on `device`; `top_k` are the K of the votes. ValueError for a K above the number of patches.

    Attributes:
        layers: L names: "1" for the first block, ..., "norm" for the final norm.
        rows: R names of scores: "<kind>@<layer>", kind "" for the model's read-out, "_cls" where that is another, and
            "_norm"; then at the end "_votes_<K>" and "_product_<K>".
    """

    def __init__(self, trained: TrainedModel, top_k: Sequence[int | float], device: torch.device) -> None:
        crop, (num_blocks, has_norm) = trained.preprocessing.crop, count_layers(trained.model)
        self.layers = [*(str(block) for block in range(1, num_blocks + 1)), *(["norm"] if has_norm else [])]
        self.votes = {str(k): trained.selection(top_k=k) for k in top_k}
        with torch.inference_mode():
            output = dense_forward(trained.model, torch.zeros(1, 3, crop, crop, device=device))
            for pool in self.votes.values():
                pool(output.patch_tokens)  # a K that does not fit stops here
        self.grid_hw, has_cls = output.grid_hw, output.cls_token is not None
        is_cls = has_cls and torch.allclose(output.cls_token, output.global_token)
        own = dict(trained.pooling)
        kind = own.pop("pool")
        learned = [
            type(module).__name__ for module in trained.model.modules() if _LEARNED.search(type(module).__name__)
        ]
        if kind == "host" and not is_cls and learned:
            raise ValueError(
                f"a learned pool ({learned[0]}) reads its patches, trained for those at the end alone: measure that "
                "with visualization/evaluate_patch_hit.py"
            )
        # what a host pools with is not known by name, but by what it gives
        self._read_out = TokenPool(kind, **own) if kind != "host" else TokenPool("cls" if is_cls else "mean")
        self._kinds = ["", *(["_cls"] if has_cls and not is_cls else []), "_norm"]
        self.rows = [f"{kind}@{layer}" for kind in self._kinds for layer in self.layers]
        self.rows += [f"_{what}_{k}" for what in ("votes", "product") for k in self.votes]

    def __call__(self, tokens: LayerTokens) -> tuple[Tensor, Tensor, Tensor]:
        """Float32 scores [B, R, N], norms [B, L, N] and votes [B, V, N]."""
        output, num_patches = tokens.output, tokens.output.patch_tokens.shape[1]
        blocks = tokens.all_tokens[: len(self.layers) - 1]
        patches = [*(each[:, -num_patches:] for each in blocks), output.patch_tokens]
        queries = [*(self._read_out(each, each.shape[1] - num_patches) for each in blocks), output.global_token]
        if "_cls" in self._kinds:
            queries += [*(each[:, 0] for each in blocks), output.cls_token]
        scores = [patch_score(patches[place % len(patches)], query) for place, query in enumerate(queries)]
        norms = [token_norms(each) for each in patches]
        votes = [
            vote_count(last_select(output.patch_tokens, pool.top_k, pool.sigma, pool.variant), num_patches).float()
            for pool in self.votes.values()
        ]
        from_0_to_1, _ = min_max(scores[len(patches) - 1], torch.ones_like(norms[0], dtype=torch.bool))
        products = [from_0_to_1.float() * each for each in votes]
        return torch.stack([*scores, *norms, *votes, *products], 1), torch.stack(norms, 1), torch.stack(votes, 1)


class LayerStatistics:
    """What is found of one model, streaming and summed over all processes."""

    def __init__(self, scores: LayerScores) -> None:
        self.names, self._rows = scores, [*scores.rows, "_random", "_center", "_max"]
        # what draws a box: the read-out at the end, votes and products
        self._drawn = [len(scores.layers) - 1, *(i for i, row in enumerate(scores.rows) if "@" not in row)]
        self._sums = SummedTensors(
            num_bad=(),
            shares=(len(_MEASURES), len(_GROUPS), len(self._rows)),
            counts=(len(_MEASURES), len(_GROUPS)),
            patches=(2,),  # all, inside
            high=(len(scores.layers), 3),  # all, inside, inside by chance
            votes_inside=(len(scores.votes),),
            objects=(),
            jaccard=(len(self._drawn) + 1,),  # the last of everything
            boxes=(),
            corloc=(len(self._drawn),),
        )

    def update(self, scores: Tensor, norms: Tensor, votes: Tensor, truth: Truth, crop: int) -> None:
        """Count one batch, as `LayerScores` reads it, of images of `crop` pixels."""
        inside, known, counts = truth.inside, truth.known, truth.counts.double()
        groups, shows_both = patch_groups(inside, known)
        pairs = counts * shows_both
        area = auroc(scores.flatten(0, 1), groups.repeat_interleave(scores.shape[1], dim=0)).view(scores.shape[:2])
        share = inside.sum(dim=1) / known.sum(dim=1).clamp(min=1).double()
        center, any_inside = truth.center.reshape(-1, 1), inside.any(dim=1, keepdim=True)
        hits = [best_inside(scores, inside, known), share[:, None], center, any_inside]
        is_high = (norms > HIGH_NORM * norms.median(dim=2, keepdim=True).values) & known[:, None]
        num_high = is_high.sum(dim=2).double()
        high = torch.stack([num_high, (is_high & inside[:, None]).sum(dim=2), num_high * share[:, None]], dim=2)
        votes = votes * known[:, None]
        votes_inside = (votes * inside[:, None]).sum(dim=2) / votes.sum(dim=2).clamp(min=1)
        has_object, overlaps = _overlaps(scores[:, self._drawn], truth.areas)
        has_box = truth.counts[0] & ~truth.box_xyxy.isnan().any(dim=1)
        self._sums.add(
            num_bad=(~scores.isfinite()).flatten(1).any(dim=1).sum(),
            shares=torch.stack([counts @ torch.cat(hits, dim=1).double(), pairs @ F.pad(area, (0, 3))]),
            counts=torch.stack([counts.sum(dim=1), pairs.sum(dim=1)]),
            patches=torch.stack([counts[0] @ each.sum(dim=1).double() for each in (known, inside)]),
            high=torch.einsum("b,blk->lk", counts[0], high),
            votes_inside=counts[0] @ votes_inside.double(),
            objects=has_object.sum(),
            jaccard=overlaps.sum(dim=0),
            boxes=has_box.sum(),
            corloc=(has_box[:, None] & self._are_right(scores[:, self._drawn], truth.box_xyxy, crop)).sum(dim=0),
        )

    def _are_right(self, scores: Tensor, box_xyxy: Tensor, crop: int) -> Tensor:
        """Whether the box that a score draws overlaps the image's by half: [B, F, N] and [B, 4] -> bool [B, F].

        As dino/eval_object_discovery.py draws it with `--component largest`: around the largest component of the
        patches above the mean + 1 standard deviation, or of the best patches where none is.
        """
        flat = scores.flatten(0, 1)
        masks = threshold_mask(flat, 1.0) | (flat == flat.amax(dim=1, keepdim=True))
        masks = masks.unflatten(1, self.names.grid_hw).cpu().numpy()
        patch = crop / self.names.grid_hw[0]
        drawn = np.array([patch_box(largest_component(mask), patch, (crop, crop)) for mask in masks])
        found = torch.from_numpy(drawn).to(box_xyxy).unflatten(0, scores.shape[:2])
        overlaps = [box_iou(boxes, own[None])[:, 0] for boxes, own in zip(found, box_xyxy, strict=True)]
        return torch.stack(overlaps) >= MIN_IOU

    def compute(self) -> tuple[dict[str, float], list[dict[str, float | str]], int]:
        """Metrics at the end, rows by layer, and the number of images, over everything counted by all processes.

        All in percent. Metrics are "<measure><group><what>": measures "point_in_box" and "auroc", groups "" and
        "_small" (where there are small objects), what "" for the read-out, a kind, votes, a product (see
        `LayerScores.rows`), and of Point-in-Box "_random", "_center" and "_max", the share of images with any patch
        inside; where patches tie, each counts in part. "corloc<what>" where every image has one box; "jaccard<what>"
        with --images: coarse segmentation by the paper's rule (the patches above the image's mean, against the pixels
        of all objects together, mean over the images that show any), and "jaccard_everything", of the whole image;
        "votes_inside_<K>", to be read against "point_in_box_random"; at the block with most high norms,
        "high_norm_block", their "high_norm_share" of all patches, of those inside and of those outside
        ("_share_inside", "_share_outside") and, from `MIN_PERCENT` on, how many of them are inside and would be by
        chance ("_inside", "_chance"). Rows have "layer", the same of their scores, and their high norms.

        Raises:
            ValueError: No image that counts, or scores that are not finite.
        """
        totals, names = self._sums.totals(), self.names
        if not totals["counts"][:, 0].all():
            raise ValueError("no image shows both object and background, so there is nothing to tell apart")
        if totals["num_bad"]:
            raise ValueError(f"{int(totals['num_bad'])} images have scores that are not finite; check the model")
        at_end: dict[str, float] = {}
        by_layer: dict[str, dict[str, float | str]] = {layer: {"layer": layer} for layer in names.layers}
        values = 100 * totals["shares"] / totals["counts"][:, :, None]
        for measure, of_measure in zip(_MEASURES, values, strict=True):
            for group, of_group in zip(_GROUPS, of_measure.tolist(), strict=True):
                for row, value in zip(self._rows, of_group, strict=True):
                    what, _, layer = row.partition("@")
                    if not math.isnan(value) and (measure == "point_in_box" or row in names.rows):
                        (by_layer[layer] if layer else at_end)[f"{measure}{group}{what}"] = value
        rows = list(by_layer.values())
        metrics = {key: value for key, value in rows[-1].items() if key != "layer"} | at_end
        drawn = [names.rows[place].partition("@")[0] for place in self._drawn]
        if totals["boxes"] == totals["counts"][0, 0]:
            found = (100 * totals["corloc"] / totals["boxes"]).tolist()
            metrics |= {f"corloc{what}": value for what, value in zip(drawn, found, strict=True)}
        if totals["objects"]:
            found = (100 * totals["jaccard"] / totals["objects"]).tolist()
            metrics |= {f"jaccard{what}": value for what, value in zip([*drawn, "_everything"], found, strict=True)}
        inside = (100 * totals["votes_inside"] / totals["counts"][0, 0]).tolist()
        metrics |= {f"votes_inside_{k}": value for k, value in zip(names.votes, inside, strict=True)}
        patches, patches_inside = totals["patches"].tolist()
        for row, (high, high_inside, chance) in zip(rows, totals["high"].tolist(), strict=True):
            row["high_norm_share"] = 100 * high / patches
            row["high_norm_share_inside"] = 100 * high_inside / patches_inside
            row["high_norm_share_outside"] = 100 * (high - high_inside) / (patches - patches_inside)
            if row["high_norm_share"] >= MIN_PERCENT:
                row |= {"high_norm_inside": 100 * high_inside / high, "high_norm_chance": 100 * chance / high}
        most = max((row for row in rows if row["layer"] != "norm"), key=lambda row: row["high_norm_share"])
        metrics |= {key: value for key, value in most.items() if key.startswith("high_norm")}
        metrics["high_norm_block"] = int(most["layer"])
        rows = [{key: value if key == "layer" else round(value, 4) for key, value in row.items()} for row in rows]
        return metrics, rows, int(totals["counts"][0, 0])


def _overlaps(scores: Tensor, areas: Tensor | None) -> tuple[Tensor, Tensor]:
    """Which images show an object, bool [B], and the Jaccard index of what each score [B, F, N] holds to be object.

    float64 [B, F + 1], the last of the whole image; 0 without an object. `areas` [B, 2, N] are those of `patch_areas`.
    """
    if areas is None:
        return scores.new_zeros(len(scores)) > 0, scores.new_zeros(len(scores), scores.shape[1] + 1)
    masks = threshold_mask(scores.flatten(0, 1), 0.0).view_as(scores)
    masks = torch.cat([masks, torch.ones_like(masks[:, :1])], dim=1).double()
    common, covered = (masks @ areas.transpose(1, 2)).unbind(dim=2)
    has_object = areas[:, 0].sum(dim=1, keepdim=True)
    return has_object[:, 0] > 0, common / (covered + has_object - common).clamp(min=1)


def run(args: argparse.Namespace) -> None:
    """The command evaluate_layers.py."""
    check_image_flags(args)
    if args.imagenet_root is None and args.boxes is None and args.masks is None:
        raise ValueError("what is object is not known: give --boxes or --masks")
    images = open_images(args) if args.imagenet_root is None else open_boxes(args, max_box_area=None)
    views = measure_models(args, "layers", measure, images)
    if not views:  # another process draws and prints
        return
    print_layers(views)
    save_figure(draw_layers(views), args.figure)


def measure(subject: Subject) -> tuple[LayerView, list[Measurement]]:
    """One pass of a model over the chosen images."""
    args, argument, trained, images, device = subject
    prep = trained.preprocessing
    scores = LayerScores(trained, list(dict.fromkeys(args.top_k)), device)
    statistics, top_k = LayerStatistics(scores), TopK() if is_numbered(images, trained) else None
    number = min(args.max_images or len(images), len(images))
    chosen = [place * len(images) // number for place in range(number)]
    for tokens, batch in dense_batches(trained.model, subject.batches(chosen), device, layer_tokens):
        with torch.inference_mode():
            truth = find_truth(batch, scores.grid_hw, prep, args.hit_rule)
            statistics.update(*scores(tokens), truth, prep.crop)
            if top_k is not None:
                top_k.update(tokens.output.logits, batch["label"])
    metrics, by_layer, num_images = statistics.compute()
    if top_k is not None:
        metrics |= {key: value for key, value in top_k.compute().items() if key != "num_images"}
    objects = f"{args.hit_rule} rule" if args.imagenet_root is not None else "masks" if args.masks else "boxes"
    config: dict[str, Any] = {key: getattr(args, key) for key in ("top_k", "max_images", "hit_rule", "batch_size")}
    protocol = f"{objects}, {number:,} of {len(images):,} images"
    return LayerView(argument.name, metrics, by_layer), [Measurement(metrics, num_images, protocol, config, by_layer)]
