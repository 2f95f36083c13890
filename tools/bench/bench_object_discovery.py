"""Time of LaSt's boxes against LOST's: box extraction on the same features, and the whole pipeline.

    python tools/bench/bench_object_discovery.py [--rounds 9] [--threads 2] [--device cuda] [--record]

ViT-S/16 with random weights on images of 375 x 500 pixels, which are padded to 24 x 32 patches; images are in memory,
so decoding and loading are left out. LOST's pipeline is what its protocol does: one image at a time in float32,
attention spelt out (softmax of all N x N products), stopped at the last block's attention, whose keys it reads. Ours is
the dense pass of this package with LaSt's pooling attached, fused attention, then patch score, threshold, component and
box. For an honest share of the credit LOST's boxes are also timed in our pipeline. On a CPU the backbone takes
nearly all of the time.
"""

import argparse
from collections.abc import Callable, Sequence

import torch
from bench_report import BenchParser, BenchReport, run_bench
from bench_timing import alternate, ratio
from discover_boxes import feature_reader
from discovery_methods import DiscoveryMethod, lost_method, patch_score_method
from last_attention import last_attention
from object_discovery import lost_mask, patch_box
from torch import Tensor

from last_vit.dense import attach_last
from last_vit.dino_vit import DinoVisionTransformer, build_dino_vit
from last_vit.pooling import LaStPool, last_pool

IMAGE_HW, PATCH, TOP_K, BATCH = (375, 500), 16, 0.25, 4
PADDED_HW, GRID_HW = (384, 512), (24, 32)
BOX_GOAL, PIPELINE_GOAL = 5.0, 1.9
OURS, LOST = patch_score_method("peak", "trained", LaStPool(1)), lost_method()


def build_vit(device: torch.device, fused: bool) -> DinoVisionTransformer:
    """The backbone, with the same weights at every call."""
    torch.manual_seed(0)
    model = attach_last(build_dino_vit("vit_small", PATCH).eval(), TOP_K)
    for block in model.blocks:
        block.attn.fused_attn = fused
    return model.to(device)


def lost_keys(model: DinoVisionTransformer, image: Tensor) -> Tensor:
    """LOST's forward pass on one image: keys of the patches [N, D]; the last attention is computed, as in its code."""
    tokens = model._pos_embed(model.patch_embed(image))
    for block in model.blocks[:-1]:
        tokens = block(tokens)
    last = model.blocks[-1]
    queries, keys, _ = last.attn.qkv(last.norm1(tokens)).chunk(3, dim=2)
    heads = [part.unflatten(2, (last.attn.num_heads, -1)).transpose(1, 2) for part in (queries, keys)]
    (heads[0] * last.attn.scale @ heads[1].transpose(2, 3)).softmax(dim=3)
    return keys[0, 1:]


def lost_pipeline(model: DinoVisionTransformer, image: Tensor) -> Callable[[], object]:
    """LOST as its protocol has it, image to box."""

    @torch.inference_mode()
    def run() -> object:
        return patch_box(lost_mask(lost_keys(model, image), GRID_HW).mask, PATCH, IMAGE_HW)

    return run


def our_pipeline(
    model: DinoVisionTransformer, images: Tensor, method: DiscoveryMethod, dtype: torch.dtype
) -> Callable[[], object]:
    """What eval_object_discovery.py does with a batch."""
    read = feature_reader([method])

    @torch.inference_mode()
    def run() -> object:
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            features = read(model, images)
        return method.boxes(features, [IMAGE_HW] * len(images), PATCH)

    return run


@torch.inference_mode()
def bench_boxes(model: DinoVisionTransformer, image: Tensor, rounds: int, report: BenchReport) -> None:
    """Box extraction on the features of one pass."""
    features = last_attention(model, image)
    tokens = features.output.patch_tokens

    def boxes(method: DiscoveryMethod, pooled: bool = False) -> Callable[[], object]:
        @torch.inference_mode()
        def run() -> object:
            if pooled:
                last_pool(tokens, TOP_K)
            return method.boxes(features, [IMAGE_HW], PATCH)

        return run

    functions = {"lost": boxes(LOST), "ours": boxes(OURS), "pooled": boxes(OURS, pooled=True)}
    times = alternate(functions, 3 * rounds, report.device, calls=3)
    boxes_words = "patch score's box against LOST's, features at hand"
    report.add("boxes", boxes_words, ratio(times["lost"], times["ours"]), goal=BOX_GOAL)
    report.add(
        "boxes_and_pooling", "pooling and patch score's box against LOST's box", ratio(times["lost"], times["pooled"])
    )


def bench_pipelines(model: DinoVisionTransformer, images: Tensor, rounds: int, report: BenchReport) -> None:
    """Image to box, per image, against LOST's pipeline."""
    plain, one, half = build_vit(images.device, fused=False), images[:1], torch.bfloat16
    keys, seen = lost_keys(plain, one), last_attention(model, one).keys[0]
    if (keys - seen).abs().max() > 1e-3 * seen.abs().max():
        raise RuntimeError("the two sides do not compute the same keys")
    pipelines = {
        "float32": ("image to box against LOST, float32", OURS, one, torch.float32),
        "float32_batch": (f"image to box against LOST, float32, batches of {BATCH}", OURS, images, torch.float32),
        "bfloat16": ("image to box against LOST, bfloat16", OURS, one, half),
        "bfloat16_batch": (f"image to box against LOST, bfloat16, batches of {BATCH}", OURS, images, half),
        "lost_here": ("LOST in our pipeline against LOST, float32", LOST, one, torch.float32),
        "lost_here_bfloat16": ("LOST in our pipeline against LOST, bfloat16", LOST, one, half),
    }
    functions = {name: our_pipeline(model, batch, how, dtype) for name, (_, how, batch, dtype) in pipelines.items()}
    times = alternate({"lost": lost_pipeline(plain, one), **functions}, rounds, report.device)
    for name, (words, method, batch, _) in pipelines.items():
        goal = PIPELINE_GOAL if method is OURS else None
        report.add(f"pipeline_{name}", words, ratio(times["lost"], times[name]).times(len(batch)), goal)


def bench(args: argparse.Namespace, report: BenchReport) -> None:
    """Both parts."""
    size = f"{IMAGE_HW[1]} x {IMAGE_HW[0]}"
    report.describe(
        f"ViT-S/16, {size} pixels", dataset=f"random images, {size} px", n_images=BATCH, top_k=TOP_K, batch=BATCH
    )
    model = build_vit(report.device, fused=True)
    images = torch.randn(BATCH, 3, *PADDED_HW, device=report.device)
    images[..., IMAGE_HW[0] :, :] = images[..., IMAGE_HW[1] :] = 0
    with torch.inference_mode():
        bench_boxes(model, images[:1], args.rounds, report)
        bench_pipelines(model, images, args.rounds, report)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    run_bench(BenchParser("bench_object_discovery", __doc__, rounds=2, recorded_rounds=3), bench, argv)


if __name__ == "__main__":
    main()
