"""Coarse segmentation: Jaccard index of a model's foreground map with annotated objects (paper Tab. 6).

The paper compares one binary map with "all ground truth foreground regions" and leaves open what a region is, so that
is a named protocol, and every record holds it:

- "union": one region, the pixels of all objects together.
- "class": one region per class that the image shows, as in CRATE's evaluation.
- "object": one region per object, as in DINO's evaluation.

A map's Jaccard index with a region is |map and region| / |map or region|. Of several maps of one image (the heads of an
attention) each region takes the best. The score of an image is the mean over its regions, the result the mean over
images. Void pixels (VOC's 255, the rim of objects) belong neither to map nor region. Images without any region are left
out and counted.

Letters: M maps of one image, H x W pixels, patches on an h x w grid.
"""

import argparse
import time
from typing import Any, Literal

import torch
from last_attention import last_attention
from object_discovery import attention_mask
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision import transforms

from last_vit.data.image_files import load_rgb
from last_vit.data.voc import VocSplit
from last_vit.dense import choose_global_token, dense_forward
from last_vit.evaluation import describe_model, open_loader, print_table, token_words, write_record
from last_vit.metrics.summed_counters import SummedCounters
from last_vit.models import TrainedModel, parse_model_arguments
from last_vit.patch_scores import patch_score, threshold_mask
from last_vit.preprocessing import Preprocessing
from last_vit.runtime import describe_device, is_main_process, process_group

VOID = 255


class CoarseSegmentation:
    """Streaming mean Jaccard index by one of the protocols, summed over all processes in `compute`."""

    def __init__(self, protocol: Literal["union", "class", "object"]) -> None:
        self.protocol = protocol
        self._counters = SummedCounters("num_images", "num_empty", "num_regions", "jaccard")

    def update(self, maps: Tensor, class_mask: Tensor, object_mask: Tensor) -> float | None:
        """Count one image; returns its score in [0, 1], None for an image without a region.

        Takes what the model holds to be foreground, bool [M, H, W], and VOC's SegmentationClass and SegmentationObject,
        uint8 [H, W]: 0 background, 255 void, else the class or the object.
        """
        jaccard = self._best_jaccard(maps, object_mask if self.protocol == "object" else class_mask)
        score = jaccard.mean() if len(jaccard) else jaccard.sum()
        self._counters.add(
            num_images=torch.tensor(len(jaccard) > 0),
            num_empty=torch.tensor(len(jaccard) == 0),
            num_regions=torch.tensor(len(jaccard)),
            jaccard=score,
        )
        return float(score) if len(jaccard) else None

    def compute(self) -> dict[str, float]:
        """Over all processes: "miou" in percent, "num_images" (with a region), "num_empty" (without), "num_regions"."""
        totals = self._counters.totals()
        if not totals["num_images"]:
            raise ValueError(
                f"coarse segmentation of zero images is undefined: none of {int(totals['num_empty'])} images has an "
                "annotated region; check the masks"
            )
        return {
            "miou": 100.0 * totals["jaccard"] / totals["num_images"],
            **{name: int(totals[name]) for name in ("num_images", "num_empty", "num_regions")},
        }

    def _best_jaccard(self, maps: Tensor, labels: Tensor) -> Tensor:
        """The best map's Jaccard index of every region: float64 [R]."""
        is_known = labels != VOID
        if self.protocol == "union":
            labels = (labels != 0).to(torch.uint8)
        labels, maps = labels[is_known].long(), maps[:, is_known].double()
        in_region = F.one_hot(labels, int(labels.max()) + 1 if len(labels) else 1).double()  # [pixels, labels]
        overlap, size = maps @ in_region, in_region.sum(dim=0)
        union = maps.sum(dim=1, keepdim=True) + size - overlap
        is_region = size > 0
        is_region[0] = False  # background
        return (overlap / union.clamp_min(1))[:, is_region].amax(dim=0)


class SegmentationImages(Dataset):
    """VOC's segmentation images, squeezed to a model's square input: aspect is ignored so that all of them is seen.

    A sample is a dict: `image` float32 [3, S, S], normalised, S the model's crop, and `index`. Masks stay at the
    annotation's own size.
    """

    def __init__(self, split: VocSplit, preprocessing: Preprocessing) -> None:
        self.split, prep = split, preprocessing
        squeeze = transforms.Resize((prep.crop, prep.crop), transforms.InterpolationMode(prep.interpolation))
        normalize = transforms.Normalize(prep.mean, prep.std)
        self._transform = transforms.Compose([squeeze, transforms.ToTensor(), normalize])

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._transform(load_rgb(self.split.image_path(index))), "index": index}


def run(args: argparse.Namespace) -> None:
    """Every model over all images; prints and writes in the main process."""
    arguments = parse_model_arguments(args.model)
    name = args.dataset_name or args.voc_root.resolve().name
    with process_group(args.device) as device:
        split = VocSplit(args.voc_root, args.voc_split, "Segmentation")
        for argument in arguments:
            trained = argument.load(image_size=args.image_size)
            start = time.perf_counter()
            found = evaluate(args, trained, split, device, argument.name)
            results = {key: metric.compute() for key, metric in found.items()}
            seconds = time.perf_counter() - start
            if not is_main_process():
                continue
            side = trained.preprocessing.crop
            speed = f"{len(split) / seconds:.1f} images/s, {describe_device(device)}"
            print(f"\n{argument.name}: {len(split)} images, {side} px, {speed}")
            cells = [["rule", "ground truth", "mIoU", "images", "regions", "without"]]
            for (rule, protocol), result in results.items():
                counts = {key: result[key] for key in ("num_images", "num_regions", "num_empty")}
                cells.append([rule, protocol, f"{result['miou']:.2f}", *map(str, counts.values())])
                detail = f"attention mass {args.mass:g}, best head"
                if rule == "score":
                    detail = token_words(args.global_token, trained)
                write_record(
                    args,
                    "coarse_seg",
                    f"{argument.name}, {rule}",
                    {"miou": result["miou"]},
                    dataset=f"{name} {args.voc_split}, {side} px, {protocol}, {detail}",
                    n_images=result["num_images"],
                    config={**describe_model(argument, trained), "rule": rule, "protocol": protocol, **counts},
                    checkpoint_sha256=trained.checkpoint_sha256,
                    seconds=seconds,
                    device=device,
                )
            print_table(cells)


def evaluate(
    args: argparse.Namespace, trained: TrainedModel, split: VocSplit, device: torch.device, title: str
) -> dict[tuple[str, str], CoarseSegmentation]:
    """Run one model over this process's share of the images: (rule, protocol) -> the metric."""
    trained.model.to(device)
    metrics = {(rule, protocol): CoarseSegmentation(protocol) for rule in args.rule for protocol in args.protocol}
    images = SegmentationImages(split, trained.preprocessing)
    for batch in open_loader(images, title, args.batch_size, args.num_workers):
        maps = {rule: make_maps(rule, args, trained, batch["image"].to(device)) for rule in args.rule}
        for position, index in enumerate(batch["index"].tolist()):
            masks = split.class_mask(index), split.object_mask(index)
            if masks[0].shape != masks[1].shape:
                sizes = " and ".join(str(tuple(mask.shape)) for mask in masks)
                raise ValueError(f"{split.stems[index]} has class and object masks of different sizes, {sizes} (h, w)")
            for (rule, _), metric in metrics.items():
                grids = maps[rule][position][None].float()  # each pixel takes the patch it lies in
                metric.update(F.interpolate(grids, masks[0].shape, mode="nearest-exact")[0].bool().cpu(), *masks)
    return metrics


@torch.inference_mode()
def make_maps(rule: str, args: argparse.Namespace, trained: TrainedModel, images: Tensor) -> Tensor:
    """What a rule holds to be foreground on images [B, 3, S, S]: bool [B, M, h, w]."""
    if rule == "score":
        output = dense_forward(trained.model, images)
        token = choose_global_token(output, args.global_token, trained.selection())
        mask = threshold_mask(patch_score(output.patch_tokens, token), num_std=0.0)
        return mask.unflatten(1, output.grid_hw)[:, None]
    found = last_attention(trained.model, images)
    if found.cls_attention is None:
        raise ValueError("this model has no class token, so rule attention has nothing to read; use --rule score")
    return attention_mask(found.cls_attention, args.mass).unflatten(2, found.output.grid_hw)
