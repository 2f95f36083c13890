"""Time of an open_clip training step with LaSt in the image tower against open_clip's own step.

    python tools/bench/bench_clip.py [--model ViT-B-16] [--batch 4] [--rounds 7] [--device cuda] [--record]

Both sides are `open_clip_train.train.train_one_epoch` over the same batch in memory, with AdamW and open_clip's own
loss, from the same weights: one with the model as open_clip makes it, one with LaSt attached. They run in this process,
in turn, in float32 and bfloat16 (amp_bf16). Ratios of medians are printed, never a bare time; on a CPU of this
process's CPU seconds, in which other processes on the machine do not count. Beside the ratio, which carries the noise
of two long steps, stands LaSt's share: the pooling's own forward and backward pass on a step's tokens, over the step.
The class token as an attached pool must give open_clip's own loss to the bit.
"""

import argparse
import logging
import statistics
import time
from collections.abc import Callable, Iterator

import open_clip
import torch
from open_clip_train.data import DataInfo
from open_clip_train.train import train_one_epoch
from torch import Tensor

from last_vit.dense import attach_pool
from last_vit.pooling import last_pool
from last_vit.results import write_result
from last_vit.runtime import describe_device, select_device

GOAL_PERCENT, TOP_K = 3.0, 0.5
PRECISIONS = {"fp32": torch.float32, "amp_bf16": torch.bfloat16}
_NO_SCALER = _NO_TEACHER = None


class OneBatch:
    """A loader of one batch, as open_clip_train reads it."""

    num_batches = 1

    def __init__(self, batch: tuple[Tensor, Tensor]) -> None:
        self.batch = batch
        self.num_samples = len(batch[0])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([self.batch])


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
    args = argparse.Namespace(
        device=str(device),
        precision=precision,
        accum_freq=1,
        skip_scheduler=True,
        distill=False,
        horovod=False,
        grad_clip_norm=1.0,
        rank=0,
        world_size=1,
        log_every_n_steps=1000,
        batch_size=len(batch[0]),
        wandb=False,
    )
    data, loss = {"train": DataInfo(OneBatch(batch))}, KeptLoss()

    def step() -> float:
        train_one_epoch(model, data, loss, 0, optimizer, _NO_SCALER, None, _NO_TEACHER, args)
        return loss.value.item()

    return step


def pooling_step(arch: str, num_images: int, precision: str, device: torch.device) -> Callable[[], None]:
    """LaSt's part of one step: forward and backward on the tokens of the image tower, beyond taking the class token."""
    tower = open_clip.create_model(arch, device="meta", load_weights=False).visual
    height, width = tower.grid_size
    tokens = torch.randn(num_images, height * width, tower.ln_post.normalized_shape[0], device=device)
    tokens = tokens.to(PRECISIONS[precision]).requires_grad_()

    def run() -> None:
        last_pool(tokens, TOP_K).sum().backward()

    return run


def alternate(functions: list[Callable[[], object]], rounds: int, device: torch.device) -> list[list[float]]:
    """Seconds of each function per round, called in turn so that drift of the machine hits all alike."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times: list[list[float]] = [[] for _ in functions]
    for index in range(rounds + 1):
        for function, seconds in zip(functions, times, strict=True):
            start = clock()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if index:  # the first round warms up
                seconds.append(clock() - start)
    return times


def bench(arch: str, num_images: int, rounds: int, device: torch.device) -> dict[str, float]:
    """All ratios; prints them."""
    config = open_clip.get_model_config(arch)
    side, length = config["vision_cfg"]["image_size"], config["text_cfg"].get("context_length", 77)
    torch.manual_seed(1)
    images = torch.randn(num_images, 3, side, side, device=device)
    texts = torch.randint(1, config["text_cfg"]["vocab_size"] - 1, (num_images, length), device=device)
    metrics: dict[str, float] = {}
    for precision in PRECISIONS:
        sides = [build_step(arch, (images, texts), pooling, precision, device) for pooling in (None, "last")]
        own, attached = (build_step(arch, (images, texts), pooling, precision, device)() for pooling in (None, "cls"))
        if own != attached:
            raise RuntimeError(f"the class token as a pool is not open_clip's own ({precision}): {attached} and {own}")
        pooling = pooling_step(arch, num_images, precision, device)
        times = alternate([*sides, pooling], rounds, device)
        plain, last, pooled = (statistics.median(seconds) for seconds in times)
        ratios = [b / a for a, b in zip(times[0], times[1], strict=True)]
        metrics[f"last_over_cls_{precision}"] = last / plain
        metrics[f"last_percent_{precision}"] = 100 * pooled / plain
        print(
            f"  {precision:8s} step with LaSt {last / plain:.3f}x open_clip's own (rounds {min(ratios):.3f} to "
            f"{max(ratios):.3f}; goal {1 + GOAL_PERCENT / 100:.2f}x)   LaSt alone "
            f"{metrics[f'last_percent_{precision}']:.2f}% of a step"
        )
    return metrics


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-16", help="of open_clip, with a ViT of its own (default ViT-B-16)")
    parser.add_argument("--batch", type=int, default=4, help="images per step (default 4)")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each side (default 7)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<index>")
    parser.add_argument("--record", action="store_true", help="write results/bench_clip.json")
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # open_clip's remark on random weights, four times
    torch.set_num_threads(args.threads)
    device = select_device(args.device)
    print(f"{args.model}, {args.batch} images per step, {describe_device(device)}")
    start = time.perf_counter()
    metrics = bench(args.model, args.batch, args.rounds, device)
    if args.record:
        write_result(
            "bench_clip",
            metrics,
            n_images=args.batch,
            dataset="random images and tokens",
            config={"model": args.model, "batch": args.batch, "rounds": args.rounds, "top_k": TOP_K},
            checkpoint_sha256=None,
            seconds=time.perf_counter() - start,
            device=device,
        )


if __name__ == "__main__":
    main()
