"""Point-in-Box (PiB, paper Sec. 3): share of single-object images whose best patch lies in the object's box.

Two hit rules, because the released script's differs from a plain reading of the paper:

- "release": a patch counts when the box touches it. The box is scaled by s = resize / min(h, w), shifted by
  (int(side * s) - crop) // 2, clamped to [0, crop], and covers the patches from floor(min / patch) to
  floor(max / patch) inclusive. So a box that ends exactly on a patch border also takes the next patch, a box cropped
  away on the left or top still takes column or row 0, and one cropped away on the right or bottom takes none.
- "center": a patch counts when its centre point lies in the box, mapped exactly as the images are (boxes.py).

Every result carries two baselines, because PiB alone says little on data with large, centred objects: a uniformly
random patch (expected value) and the image's centre; and what is attainable, for an object may be cropped away or lie
between patch centres. Does not choose images: single objects, maximal box areas and the like are the data set's
business.

Letters: M boxes (one per image), N = h * w patches in row-major order.
"""

import torch
from torch import Tensor

from last_vit.boxes import check_image_hw, resize_crop_box
from last_vit.metrics.summed_counters import SummedCounters

HIT_RULES = ("release", "center")


def box_patch_mask(
    boxes_xyxy: Tensor, image_hw: Tensor, grid_hw: tuple[int, int], crop: int, resize: int, hit_rule: str = "release"
) -> Tensor:
    """The patches that count as inside each box, under one of `HIT_RULES`: bool [M, N], all false for a NaN box.

    Boxes, `image_hw`, `crop` and `resize` are as in `resize_crop_box`; `grid_hw` (h, w) is the patch grid on the crop,
    so a patch is crop / h by crop / w pixels.

    Example:
        >>> box = torch.tensor([[0.0, 0.0, 32.0, 64.0]])
        >>> box_patch_mask(box, torch.tensor([[64, 64]]), (2, 2), crop=64, resize=64, hit_rule="center")
        tensor([[ True, False,  True, False]])
    """
    if hit_rule not in HIT_RULES:
        raise ValueError(f"hit_rule must be one of {', '.join(HIT_RULES)}, got {hit_rule!r}")
    map_boxes = resize_crop_box if hit_rule == "center" else _release_crop_box
    boxes = map_boxes(boxes_xyxy, image_hw.to(boxes_xyxy.device), resize, crop)
    x1, y1, x2, y2 = boxes[:, :, None].unbind(dim=1)
    in_column = _covered(x1, x2, grid_hw[1], crop, hit_rule)
    in_row = _covered(y1, y2, grid_hw[0], crop, hit_rule)
    return (in_row[:, :, None] & in_column[:, None, :]).flatten(1)


class PointInBox:
    """Streaming Point-in-Box with its baselines and its bound, summed over all processes in `compute`.

    Images with a NaN box (no object, or several) are not counted. `crop` and `resize` are the images', in pixels.

    The centre baseline, per hit rule: "center" asks whether the crop's centre point lies in the box; "release" asks for
    the patch at the centre, which for an even grid is any of the 2 or 4 patches that meet there, so it is the expected
    value over them.
    """

    def __init__(self, crop: int, resize: int, hit_rule: str = "release") -> None:
        if hit_rule not in HIT_RULES:
            raise ValueError(f"hit_rule must be one of {', '.join(HIT_RULES)}, got {hit_rule!r}")
        self.crop, self.resize, self.hit_rule = crop, resize, hit_rule
        self._counters = SummedCounters("num_images", "num_nan", "hit", "random", "center", "max")

    def update(self, patch_score: Tensor, boxes_xyxy: Tensor, image_hw: Tensor, grid_hw: tuple[int, int]) -> None:
        """Count one batch; boxes [B, 4], `image_hw` [B, 2] and `grid_hw` as in `box_patch_mask`.

        `patch_score` is float [B, N], higher is better (the first of equal patches is taken), or long [B], each image's
        chosen patch.
        """
        num_patches = grid_hw[0] * grid_hw[1]
        is_score = patch_score.is_floating_point()
        if patch_score.shape != ((len(boxes_xyxy), num_patches) if is_score else (len(boxes_xyxy),)):
            raise ValueError(
                f"patch_score must be float [B, {num_patches}] or long [B] for B = {len(boxes_xyxy)} boxes and grid "
                f"{tuple(grid_hw)}, got {patch_score.dtype} {tuple(patch_score.shape)}"
            )
        boxes_xyxy = boxes_xyxy.to(patch_score.device, non_blocking=True)
        image_hw = image_hw.to(patch_score.device, non_blocking=True)
        peak = patch_score.max(dim=1).indices if is_score else patch_score
        has_box = ~boxes_xyxy.isnan().any(dim=1)
        inside = box_patch_mask(boxes_xyxy, image_hw, grid_hw, self.crop, self.resize, self.hit_rule)
        is_nan = patch_score.isnan().any(dim=1) if is_score else torch.zeros_like(has_box)
        # NaN boxes have no patches, so they add nothing to the sums and need no selecting, which would stall a GPU
        self._counters.add(
            num_images=has_box.sum(),
            num_nan=(is_nan & has_box).sum(),
            hit=inside.gather(1, peak[:, None]).sum(),
            random=inside.double().mean(dim=1).sum(),
            max=inside.any(dim=1).sum(),
            center=self.center_hits(inside, boxes_xyxy, image_hw, grid_hw).sum(),
        )

    def count(self) -> int:
        """Images with a box so far, all processes together; every process must call this together."""
        return int(self._counters.totals()["num_images"])

    def compute(self) -> dict[str, float | int]:
        """Over everything counted by all processes; ValueError for no image with a box, and for NaN scores.

        "point_in_box", "point_in_box_random", "point_in_box_center" and "point_in_box_max" (the share of images whose
        box holds any patch under the hit rule) in percent, and "num_images".
        """
        totals = self._counters.totals()
        num_images = int(totals["num_images"])
        if num_images == 0:
            raise ValueError(
                "Point-in-Box of zero images is undefined: no image had exactly one box; check the annotation folder, "
                "and the largest box area that is let through"
            )
        if totals["num_nan"]:
            raise ValueError(f"{int(totals['num_nan'])} of {num_images} images have NaN patch scores; check the model")
        return {
            "point_in_box": 100.0 * totals["hit"] / num_images,
            "point_in_box_random": 100.0 * totals["random"] / num_images,
            "point_in_box_center": 100.0 * totals["center"] / num_images,
            "point_in_box_max": 100.0 * totals["max"] / num_images,
            "num_images": num_images,
        }

    def center_hits(self, inside: Tensor, boxes_xyxy: Tensor, image_hw: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        """Share of each image's centre that is inside its box: [B] in [0, 1]."""
        if self.hit_rule == "center":  # the centre of a one-patch grid is the crop's centre
            return box_patch_mask(boxes_xyxy, image_hw, (1, 1), self.crop, self.resize, "center").double()
        middle_rows, middle_columns = (slice((n - 1) // 2, n // 2 + 1) for n in grid_hw)
        return inside.unflatten(1, grid_hw)[:, middle_rows, middle_columns].double().mean(dim=(1, 2))


def _covered(start: Tensor, stop: Tensor, num_patches: int, side: int, hit_rule: str) -> Tensor:
    """The patches of one axis that each interval covers: two float64 [M, 1] in pixels -> bool [M, num_patches]."""
    patch = side / num_patches
    idx = torch.arange(num_patches, device=start.device, dtype=start.dtype)
    if hit_rule == "center":
        return (start <= (idx + 0.5) * patch) & ((idx + 0.5) * patch < stop)
    return ((start / patch).floor() <= idx) & (idx <= (stop / patch).floor())


def _release_crop_box(boxes_xyxy: Tensor, image_hw: Tensor, resize: int, crop: int) -> Tensor:
    """The released script's own box mapping, which differs from the image's by up to a pixel: float64 [M, 4]."""
    check_image_hw(image_hw, boxes_xyxy, resize, crop)
    size = image_hw.double()
    scale = resize / size.amin(dim=1, keepdim=True)
    offset = (((size * scale).floor() - crop) / 2).floor()
    return (boxes_xyxy.double() * scale - offset.flip(1).repeat(1, 2)).clamp(0, crop)
