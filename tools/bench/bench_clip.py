"""Time of an open_clip training step with LaSt in the image tower against open_clip's own step.

    python tools/bench/bench_clip.py [--model ViT-B-16] [--batch 4] [--rounds 7] [--device cuda] [--record]

Both sides are `open_clip_train.train.train_one_epoch` over the same batch in memory, with AdamW and open_clip's own
loss, from the same weights: one with the model as open_clip makes it, one with LaSt attached, in turn, in float32 and
bfloat16 (amp_bf16). Beside the ratio, which carries the noise of two long steps, stands LaSt's share: the pooling's own
forward and backward pass on a step's tokens, over the step. The class token as an attached pool must give open_clip's
own loss to the bit.
"""

import argparse
import logging
from collections.abc import Callable, Sequence

import open_clip
import torch
from bench_report import BenchParser, BenchReport, run_bench
from bench_timing import alternate, ratio
from open_clip_loop import NO_SCALER, NO_SCHEDULER, NO_TEACHER, Repeated, loop_arguments
from open_clip_train.data import DataInfo
from open_clip_train.train import train_one_epoch
from torch import Tensor

from last_vit.dense import attach_pool
from last_vit.pooling import last_pool

GOAL_PERCENT, TOP_K = 3.0, 0.5
PRECISIONS = {"fp32": torch.float32, "amp_bf16": torch.bfloat16}


class KeptLoss:
    """open_clip's contrastive loss, which keeps its last value."""

    def __init__(self) -> None:
        self.loss = open_clip.ClipLoss()
        self.value = torch.tensor(0.0)

    def __call__(self, **features: Tensor) -> dict[str, Tensor]:
        """As open_clip's loss."""
        terms = self.loss(**features)
        self.value = terms["contrastive_loss"].detach()
        return terms


def build_step(
    arch: str, batch: tuple[Tensor, Tensor], pooling: str | None, precision: str, device: torch.device
) -> Callable[[], float]:
    """One side's training step, from the same weights at every call; it returns the loss before the step.

    Args:
        arch: open_clip's name.
        batch: Images and tokens.
        pooling: None for the model as open_clip makes it.
        precision: As open_clip_train's --precision.
        device: Where to train.
    """
    torch.manual_seed(0)
    model = open_clip.create_model(arch, device=device, output_dict=True)
    if pooling is not None:
        attach_pool(model, pooling, TOP_K if pooling == "last" else None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.05)
    args = loop_arguments(device, precision, len(batch[0]))
    data, loss = {"train": DataInfo(Repeated(batch))}, KeptLoss()

    def step() -> float:
        train_one_epoch(model, data, loss, 0, optimizer, NO_SCALER, NO_SCHEDULER, NO_TEACHER, args)
        return loss.value.item()

    return step


def pooling_step(arch: str, num_images: int, precision: str, device: torch.device) -> Callable[[], None]:
    """LaSt's part of one step: forward and backward on the tokens of the image tower, beyond taking the class token."""
    tower = open_clip.create_model(arch, device="meta", load_weights=False).visual
    height, width = tower.grid_size
    tokens = torch.randn(num_images, height * width, tower.ln_post.normalized_shape[0], device=device)
    tokens = tokens.to(PRECISIONS[precision]).requires_grad_()

    def run() -> None:
        torch.autograd.grad(last_pool(tokens, TOP_K).sum(), tokens)

    return run


def bench(args: argparse.Namespace, report: BenchReport) -> None:
    """Both precisions."""
    logging.disable(logging.WARNING)  # open_clip's remark on random weights, four times
    config, device = open_clip.get_model_config(args.model), report.device
    if config is None:
        raise ValueError(f"open_clip has no model {args.model!r}; open_clip.list_models() names all")
    report.describe(
        f"{args.model}, {args.batch} images per step",
        dataset="random images and tokens",
        n_images=args.batch,
        top_k=TOP_K,
    )
    side, length = config["vision_cfg"]["image_size"], config["text_cfg"].get("context_length", 77)
    images = torch.randn(args.batch, 3, side, side, device=device)
    texts = torch.randint(1, config["text_cfg"]["vocab_size"] - 1, (args.batch, length), device=device)
    for precision in PRECISIONS:
        own, last, cls = (
            build_step(args.model, (images, texts), pooling, precision, device) for pooling in (None, "last", "cls")
        )
        losses = own(), cls()
        if losses[0] != losses[1]:
            raise RuntimeError(f"the class token as a pool is not open_clip's own ({precision}): {losses[::-1]}")
        del cls
        alone = pooling_step(args.model, args.batch, precision, device)
        times = alternate({"own": own, "last": last, "alone": alone}, args.rounds, device)
        report.add(
            f"step_{precision}",
            f"step with LaSt over open_clip's own, {precision}",
            ratio(times["last"], times["own"]),
            limit=1 + GOAL_PERCENT / 100,
        )
        share = ratio(times["alone"], times["own"]).times(100)
        report.add(f"last_{precision}", f"LaSt alone, part of open_clip's step, {precision}", share, unit="%")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = BenchParser("bench_clip", __doc__, rounds=2, recorded_rounds=7)
    parser.add_argument("--model", default="ViT-B-16", help="of open_clip, with a ViT of its own (default ViT-B-16)")
    parser.add_size("--batch", 2, 4, "images per step", on_gpu=128)
    run_bench(parser, bench, argv)


if __name__ == "__main__":
    main()
