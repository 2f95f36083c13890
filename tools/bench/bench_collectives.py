"""Bytes that the GPUs of a training step send each other, by arithmetic, and the time that takes. For benches only.

Letters: n GPUs, S bytes in one GPU's tensor, b bytes per second that one GPU sends (and at once receives).

| collective | each GPU sends | who |
|---|---|---|
| all-reduce, as a ring | 2 (n - 1) / n S | gradients (DDP), losses, DINO's centre, evaluation counters |
| all-gather | (n - 1) S | CLIP's image and text features |
| reduce-scatter of n S | (n - 1) S | their gradient, with open_clip's --gather-with-grad |

A message takes its bytes over b. Up to `GPUS_PER_NODE` GPUs b is the link inside a node; beyond, the whole ring is as
slow as its slowest link, the one between nodes. Left out are the start-up times of messages, which make small messages
slower than this, and rings within rings, which make large ones on several nodes faster.
"""

from dataclasses import dataclass

from torch import nn

GPUS_PER_NODE = 8


@dataclass(frozen=True)
class Link:
    """What one GPU sends per second, in GB/s (1e9 bytes).

    Attributes:
        intra: To another GPU of its node.
        inter: To one of another node.
    """

    intra: float
    inter: float

    def seconds(self, num_bytes: float, num_gpus: int) -> float:
        """Time of a message in which each GPU sends `num_bytes`."""
        return num_bytes / ((self.intra if num_gpus <= GPUS_PER_NODE else self.inter) * 1e9)


@dataclass(frozen=True)
class Messages:
    """What one GPU holds of the tensors that a step sends, in bytes.

    Attributes:
        gradients: All-reduced behind the backward pass, which they may overlap.
        reduced: Other tensors that are all-reduced, each of which the step waits for.
        gathered: All-gathered in the forward pass; all GPUs together hold n times as much.
        gathered_back: Of these, what the backward pass reduce-scatters.
    """

    gradients: int
    reduced: int = 0
    gathered: int = 0
    gathered_back: int = 0

    def sent_behind(self, num_gpus: int) -> float:
        """Bytes per GPU and step that backward can hide."""
        return all_reduce_bytes(self.gradients, num_gpus)

    def sent_alone(self, num_gpus: int) -> float:
        """Bytes per GPU and step that nothing hides."""
        gathered = self.gathered + self.gathered_back
        return all_reduce_bytes(self.reduced, num_gpus) + all_gather_bytes(gathered, num_gpus)


def all_reduce_bytes(size: int, num_gpus: int) -> float:
    """What each GPU sends in a ring all-reduce of `size` bytes."""
    return 2 * (num_gpus - 1) / num_gpus * size


def all_gather_bytes(size: int, num_gpus: int) -> float:
    """What each GPU sends (and receives) where each holds `size` bytes at first; the same for the reduce-scatter."""
    return (num_gpus - 1) * size


def gradient_bytes(model: nn.Module, bytes_per_value: int = 4) -> int:
    """Bytes of a model's gradients as DDP sends them: 4 per trained parameter in float32, 2 with a bfloat16 hook."""
    return bytes_per_value * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def step_seconds(compute: float, messages: Messages, link: Link, num_gpus: int, overlap: bool) -> float:
    """Time of a step of `num_gpus` GPUs.

    Args:
        compute: Seconds of the same step on one GPU.
        messages: Of that step.
        link: Between GPUs.
        num_gpus: n.
        overlap: Whether gradients are sent while others are computed (all of them), or after (none).
    """
    behind = link.seconds(messages.sent_behind(num_gpus), num_gpus)
    alone = link.seconds(messages.sent_alone(num_gpus), num_gpus)
    return alone + (max(compute, behind) if overlap else compute + behind)
