"""The whole detector on a tiny stand-in tower: it learns, answers in its vocabulary, and survives odd inputs."""

import json

import pytest
import torch
from detectron2.utils.events import EventStorage
from fvit.frozen_clip import FrozenClip
from fvit.fvit_model import build_fvit
from fvit_parts import SMALL_HEADS, SMALL_RPN, TINY_CLIP, StubClip, is_base, sample, small_fvit, vocabulary
from torchvision.ops import box_iou

LOOSE = {"score_thresh": 0.0, "alpha": 0.0, "beta": 0.0}  # everything found, by the detector alone


def train(model, samples, steps, lr=2e-3):
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=lr)
    totals = []
    with EventStorage():
        for _ in range(steps):
            loss = sum(model(samples).values())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_((p for p in model.parameters() if p.requires_grad), 1.0)  # as F-ViT
            optimizer.step()
            totals.append(loss.item())
    return totals


@torch.no_grad()
def detect(model, samples):
    return [answer["instances"] for answer in model.eval()(samples)]


def test_overfits_one_image():
    """Trained on one image until it finds both objects; detector's score alone, as the stand-in knows no classes."""
    model = small_fvit(clip=StubClip(embed_dim=32), roi_heads={**LOOSE, "masks": True, "score_thresh": 0.3})
    totals = train(model, [sample(masks=True)], 60, lr=3e-3)
    assert sum(totals[-10:]) < 0.4 * sum(totals[:10])
    found = detect(model, [sample()])[0]
    best = {int(label): box for label, box in reversed(list(zip(found.pred_classes, found.pred_boxes, strict=True)))}
    for label, box in ((0, [8.0, 8, 56, 72]), (2, [40.0, 16, 88, 60])):
        assert label in best
        assert box_iou(best[label][None], torch.tensor([box])) > 0.5
    assert found.pred_masks.shape == (len(found), 96, 96)


@pytest.mark.parametrize("masks", [False, True])
def test_batch_of_one_is_a_slice(masks):
    model = small_fvit(roi_heads={**LOOSE, "masks": masks})
    samples = [sample(seed=seed) for seed in range(3)]
    together = detect(model, samples)
    for alone, among in zip((detect(model, [one])[0] for one in samples), together, strict=True):
        assert len(alone) == len(among) > 0
        torch.testing.assert_close(alone.scores, among.scores, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(alone.pred_boxes.tensor, among.pred_boxes.tensor, rtol=1e-3, atol=1e-2)
        assert torch.equal(alone.pred_classes, among.pred_classes)


@pytest.mark.parametrize(("patch_size", "square_size"), [(16, 0), (14, 0), (16, 160)])
def test_images_of_any_shape(patch_size, square_size):
    model = small_fvit(patch_size=patch_size, roi_heads=LOOSE, square_size=square_size)
    samples = [sample(70, 130, [[10, 10, 60, 50]], [1]), sample(133, 61, [[5, 20, 50, 99]], [0], seed=1)]
    for one in samples:  # answers in the size of the original image
        one["height"], one["width"] = 2 * one["height"], 2 * one["width"]
    totals = train(model, samples, 2)
    assert all(total < float("inf") for total in totals)
    for one, found in zip(samples, detect(model, samples), strict=True):
        assert found.image_size == (one["height"], one["width"])
        assert len(found) > 0
        assert (found.pred_boxes.tensor[:, 2] <= one["width"]).all()
        assert (found.pred_boxes.tensor[:, 3] <= one["height"]).all()
    with pytest.raises(ValueError, match=r"image0.jpg is \(400, 96\) .* square_size 160"):
        detect(small_fvit(square_size=160), [sample(height=400)])


def test_images_without_objects():
    model = small_fvit(roi_heads={"masks": True}, rpn={"norm": "BN"})
    empty = sample(boxes=(), classes=())
    with EventStorage():
        for batch in ([empty], [empty, sample(masks=True)]):
            losses = model(batch)
            assert all(torch.isfinite(loss) for loss in losses.values())
            sum(losses.values()).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    found = detect(small_fvit(roi_heads={"score_thresh": 1.0, "masks": True}), [sample()])[0]
    assert found.pred_masks.shape == (0, 96, 96)


def test_a_step_in_bfloat16(tmp_path):
    """The trainer's autocast: the same losses but for rounding, and gradients for every weight."""
    (tmp_path / "fvit_tiny.json").write_text(json.dumps(TINY_CLIP))
    samples, totals = [sample(64, 64, [[8, 8, 40, 40]], [1], masks=True)], []
    for enabled in (False, True):
        clip = FrozenClip(str(tmp_path / "fvit_tiny.json"), random_seed=0, bf16=enabled)
        model = small_fvit(clip=clip, roi_heads={"masks": True})
        torch.manual_seed(0)
        with EventStorage(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = sum(model(samples).values())
        loss.backward()
        totals.append(loss.item())
        assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    assert totals[1] == pytest.approx(totals[0], rel=0.1)


def test_the_detector_alone_scores_with_text_of_any_width():
    """Without the vision-language score: the same as alpha = beta = 0, and the text may be of another tower."""
    fused = small_fvit(roi_heads=LOOSE)
    torch.manual_seed(0)
    parts = {"channels": 16, "rpn": SMALL_RPN, "roi_heads": {**SMALL_HEADS, "score_thresh": 0.0}}
    alone = build_fvit(StubClip(), vocabulary(), is_base(), vision_language_score=False, **parts)
    expected, found = detect(fused, [sample()])[0], detect(alone, [sample()])[0]
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-5, atol=1e-7)
    assert torch.equal(found.pred_classes, expected.pred_classes)
    assert "dense" not in alone.backbone(torch.zeros(1, 3, 64, 64))
    options = {"vision_language_score": False, "classifier": {"zero_background": True}}
    other = build_fvit(StubClip(), vocabulary(width=20, background=False), is_base(), **options, **parts)
    assert all(total < float("inf") for total in train(other, [sample()], 2))
    assert len(detect(other, [sample()])[0]) > 0
