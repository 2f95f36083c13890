"""Time of LaSt's boxes against LOST's: box extraction on the same features, and the whole pipeline.

    python tools/bench/bench_object_discovery.py [--rounds 3] [--threads 1] [--device cuda] [--record]

ViT-S/16 with random weights on images of 375 x 500 pixels, which are padded to 24 x 32 patches; images are in memory,
so decoding and loading are left out. LOST's pipeline is what its protocol does: one image at a time in float32,
attention spelt out (softmax of all N x N products), stopped at the last block's attention, whose keys it reads. Ours is
the dense pass of this package with LaSt's pooling attached, fused attention, then patch score, threshold, component and
box. For an honest share of the credit LOST's boxes are also timed in our pipeline. Both sides run in this process, in
turn; ratios of medians are printed, never a bare time. On a CPU the backbone takes nearly all of the time.
"""

import argparse
import time
from collections.abc import Callable

import torch
from bench_pooling import alternate
from torch import Tensor

from last_vit.dense import attach_last
from last_vit.dino_vit import DinoVisionTransformer, build_dino_vit
from last_vit.discover_boxes import feature_reader
from last_vit.discovery_methods import DiscoveryMethod, lost_method, patch_score_method
from last_vit.last_attention import last_attention
from last_vit.object_discovery import lost_mask, patch_box
from last_vit.pooling import LaStPool, last_pool
from last_vit.results import write_result
from last_vit.runtime import describe_device, select_device

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
def bench_boxes(model: DinoVisionTransformer, image: Tensor, rounds: int) -> dict[str, float]:
    """Box extraction on the features of one pass."""
    features = last_attention(model, image)
    tokens = features.output.patch_tokens

    def with_pooling() -> object:
        last_pool(tokens, TOP_K)
        return OURS.boxes(features, [IMAGE_HW], PATCH)

    functions = [lambda method=method: method.boxes(features, [IMAGE_HW], PATCH) for method in (LOST, OURS)]
    lost, ours, pooled = alternate([torch.inference_mode()(each) for each in (*functions, with_pooling)], 3 * rounds)
    print(
        f"box extraction, same features: patch-score {lost / ours:5.1f}x as fast as lost (goal {BOX_GOAL}x: "
        f"{_verdict(lost / ours, BOX_GOAL)}); with LaSt's pooling of K = {TOP_K} counted in {lost / pooled:4.2f}x"
    )
    return {"boxes_speedup": lost / ours, "boxes_and_pooling_speedup": lost / pooled}


def bench_pipelines(model: DinoVisionTransformer, images: Tensor, rounds: int) -> dict[str, float]:
    """Image to box, per image, against LOST's pipeline."""
    plain, one, half = build_vit(images.device, fused=False), images[:1], torch.bfloat16
    keys, seen = lost_keys(plain, one), last_attention(model, one).keys[0]
    if (keys - seen).abs().max() > 1e-3 * seen.abs().max():
        raise RuntimeError("the two sides do not compute the same keys")
    pipelines = {
        "patch-score": (our_pipeline(model, one, OURS, torch.float32), 1),
        "patch-score_batch": (our_pipeline(model, images, OURS, torch.float32), BATCH),
        "patch-score_bfloat16": (our_pipeline(model, one, OURS, half), 1),
        "patch-score_bfloat16_batch": (our_pipeline(model, images, OURS, half), BATCH),
        "lost_here": (our_pipeline(model, one, LOST, torch.float32), 1),
        "lost_here_bfloat16": (our_pipeline(model, one, LOST, half), 1),
    }
    reference, *seconds = alternate([lost_pipeline(plain, one), *(run for run, _ in pipelines.values())], rounds)
    ratios = {}
    print("whole pipeline, image to box, times as fast as LOST's (float32, one image, attention spelt out):")
    for (name, (_, number)), taken in zip(pipelines.items(), seconds, strict=True):
        ratio = ratios[f"pipeline_speedup_{name}"] = number * reference / taken
        goal = f"  (goal {PIPELINE_GOAL}x: {_verdict(ratio, PIPELINE_GOAL)})" if name.startswith("patch") else ""
        print(f"  {name:27s} {ratio:5.2f}x{goal}")
    return ratios


def _verdict(ratio: float, goal: float) -> str:
    return "ok" if ratio >= goal else "BELOW GOAL"


def main() -> None:
    """Run both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of three timed calls of each side (default 3)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<index>")
    parser.add_argument("--record", action="store_true", help="write results/bench_object_discovery.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = select_device(args.device)
    model = build_vit(device, fused=True)
    images = torch.randn(BATCH, 3, *PADDED_HW, device=device)
    images[..., IMAGE_HW[0] :, :] = images[..., IMAGE_HW[1] :] = 0
    print(f"ViT-S/16, {IMAGE_HW[1]} x {IMAGE_HW[0]} pixels, batches of {BATCH}, {describe_device(device)}")
    start = time.perf_counter()
    with torch.inference_mode():
        metrics = {**bench_boxes(model, images[:1], args.rounds), **bench_pipelines(model, images, args.rounds)}
    if args.record:
        write_result(
            "bench_object_discovery",
            metrics,
            n_images=BATCH,
            dataset=f"random images, {IMAGE_HW[1]} x {IMAGE_HW[0]} px",
            config={"rounds": args.rounds, "top_k": TOP_K, "batch": BATCH, "model": f"ViT-S/{PATCH}, random weights"},
            checkpoint_sha256=None,
            seconds=time.perf_counter() - start,
            device=device,
        )


if __name__ == "__main__":
    main()
