"""Point-in-Box: the released script's patch sets, the plain rule by brute force, baselines, and exact distribution."""

import json
from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from last_vit.boxes import resize_crop_box
from last_vit.metrics import PointInBox, box_patch_mask

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "golden" / "patch_hit_release.json").read_text())
HW = torch.tensor([64, 64])


def random_images(num_images: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes [M, 4] inside images of random sizes [M, 2]."""
    generator = torch.Generator().manual_seed(seed)
    image_hw = torch.randint(20, 300, (num_images, 2), generator=generator)
    corners = torch.rand(num_images, 2, 2, generator=generator).sort(dim=1).values
    return (corners * image_hw.flip(1)[:, None]).flatten(1), image_hw


def test_golden_patch_sets_of_the_release():
    cases = GOLDEN["cases"]
    boxes = torch.tensor([case["bbox_xyxy"] for case in cases], dtype=torch.float32)
    image_hw = torch.tensor([[case["height"], case["width"]] for case in cases])
    grid = GOLDEN["image_size"] // GOLDEN["patch_size"]
    mask = box_patch_mask(boxes, image_hw, (grid, grid), GOLDEN["image_size"], GOLDEN["resize"], "release")
    assert [row.nonzero().flatten().tolist() for row in mask] == [case["patches"] for case in cases]


@pytest.mark.parametrize("grid_hw", [(1, 1), (3, 5), (8, 8)])
def test_center_rule_is_the_patch_centre_in_the_mapped_box(grid_hw):
    boxes, image_hw = random_images(12)
    mask = box_patch_mask(boxes, image_hw, grid_hw, crop=56, resize=64, hit_rule="center").unflatten(1, grid_hw)
    for m, (x1, y1, x2, y2) in enumerate(resize_crop_box(boxes, image_hw, 64, 56).tolist()):
        for row in range(grid_hw[0]):
            for column in range(grid_hw[1]):
                x, y = (column + 0.5) * 56 / grid_hw[1], (row + 0.5) * 56 / grid_hw[0]
                assert mask[m, row, column] == (x1 <= x < x2 and y1 <= y < y2)


def test_half_open_border_and_inclusive_release():
    box = torch.tensor([[0.0, 0.0, 32.0, 32.0]])  # ends on the border of a 4x4 grid of 16-pixel patches
    for hit_rule, expected in (("center", 4), ("release", 9)):
        assert box_patch_mask(box, HW[None], (4, 4), 64, 64, hit_rule).sum() == expected
    on_point = torch.tensor([[8.0, 8.0, 24.0, 24.0]])  # starts on one patch centre and ends on the next
    assert box_patch_mask(on_point, HW[None], (4, 4), 64, 64, "center").nonzero().tolist() == [[0, 0]]


def test_scores_and_chosen_patches_agree_and_nan_boxes_are_left_out():
    boxes, image_hw = random_images(20)
    boxes[3:6] = torch.nan
    score = torch.rand(20, 16, generator=torch.Generator().manual_seed(1))
    by_score, by_peak, kept_only = (PointInBox(crop=56, resize=64) for _ in range(3))
    by_score.update(score, boxes, image_hw, (4, 4))
    by_peak.update(score.argmax(dim=1), boxes, image_hw, (4, 4))
    kept = ~boxes[:, 0].isnan()
    for part in (slice(0, 8), slice(8, None)):
        kept_only.update(score[kept][part], boxes[kept][part], image_hw[kept][part], (4, 4))
    assert by_score.compute() == by_peak.compute() == kept_only.compute()
    assert by_score.compute()["num_images"] == 17


def test_random_baseline_is_the_expected_hit_rate():
    boxes, image_hw = random_images(10)
    every_patch = PointInBox(crop=56, resize=64, hit_rule="center")
    for patch in range(16):
        every_patch.update(torch.full((10,), patch), boxes, image_hw, (4, 4))
    result = every_patch.compute()
    assert result["point_in_box"] == pytest.approx(result["point_in_box_random"])
    assert 0 < result["point_in_box_random"] < 100


@pytest.mark.parametrize(
    ("hit_rule", "grid", "box", "expected"),
    [
        ("release", 3, [20, 20, 40, 40], 100.0),  # odd grid: the middle patch
        ("release", 4, [1, 1, 30, 33], 50.0),  # even grid: two of the four patches around the centre
        ("center", 4, [32, 32, 60, 60], 100.0),  # the centre point itself, half open
        ("center", 4, [1, 1, 32, 32], 0.0),
    ],
)
def test_center_baseline(hit_rule, grid, box, expected):
    metric = PointInBox(crop=64, resize=64, hit_rule=hit_rule)
    metric.update(torch.zeros(1, dtype=torch.long), torch.tensor([box], dtype=torch.float32), HW[None], (grid, grid))
    assert metric.compute()["point_in_box_center"] == expected


@pytest.mark.parametrize(("hit_rule", "expected"), [("center", 50.0), ("release", 75.0)])
def test_attainable_is_the_share_of_boxes_that_hold_a_patch(hit_rule, expected):
    """Of a box between two patch centres and one right of the crop none does under the rule of centres."""
    metric = PointInBox(crop=64, resize=64, hit_rule=hit_rule)
    boxes = torch.tensor([[0, 0, 64, 64], [9, 9, 23, 40], [20, 20, 30, 30], [100, 10, 120, 40], [torch.nan] * 4])
    image_hw = torch.tensor([[64, 64], [64, 64], [64, 64], [64, 128], [64, 64]])
    metric.update(torch.zeros(5, dtype=torch.long), boxes.float(), image_hw, (4, 4))
    assert metric.compute()["point_in_box_max"] == expected


def test_errors_instead_of_nan():
    metric = PointInBox(crop=64, resize=64)
    metric.update(torch.rand(2, 16), torch.full((2, 4), torch.nan), HW.repeat(2, 1), (4, 4))
    with pytest.raises(ValueError, match="zero images"):
        metric.compute()
    metric.update(torch.full((1, 16), torch.nan), torch.tensor([[0.0, 0.0, 9.0, 9.0]]), HW[None], (4, 4))
    with pytest.raises(ValueError, match="NaN patch scores"):
        metric.compute()
    with pytest.raises(ValueError, match="release, center"):
        PointInBox(crop=64, resize=64, hit_rule="middle")
    with pytest.raises(ValueError, match=r"float \[B, 16\]"):
        metric.update(torch.rand(1, 9), torch.zeros(1, 4), HW[None], (4, 4))


def _distributed_worker(rank: int, sizes: tuple[int, ...], init_file: str, results) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=2)
    for num_images in sizes:
        metric = PointInBox(crop=56, resize=64)
        boxes, image_hw = random_images(num_images)
        mine = slice(rank, None, 2)
        if len(boxes[mine]):  # with one image the second process sees none
            metric.update(torch.arange(num_images)[mine] % 16, boxes[mine], image_hw[mine], (4, 4))
        results.put((num_images, metric.compute()))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_count_every_image_once(tmp_path):
    sizes = (1, 7)
    results = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(_distributed_worker, (sizes, str(tmp_path / "init"), results), nprocs=2)
    for num_images, counted in [results.get() for _ in range(2 * len(sizes))]:
        alone = PointInBox(crop=56, resize=64)
        alone.update(torch.arange(num_images) % 16, *random_images(num_images), (4, 4))
        assert counted == alone.compute()
        assert counted["num_images"] == num_images
