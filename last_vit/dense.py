"""Attach a pool to any supported host, and read a host densely: global token, patch tokens and logits of one pass.

The public face of adapters/. Nothing here changes parameters, state-dict keys or the host's forward.

    model = torchvision.models.vit_b_16()
    attach_last(model, top_k=0.5)                   # classifies from the LaSt token from now on
    out = dense_forward(model, images)              # out.global_token [B, D], out.patch_tokens [B, N, D], ...
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from last_vit.adapters import DenseOutput, find_adapter, unwrap_host
from last_vit.names import GLOBAL_TOKENS
from last_vit.pooling import LaStPool, describe
from last_vit.token_pool import TokenPool

__all__ = [
    "DenseOutput",
    "attach_last",
    "attach_pool",
    "choose_global_token",
    "dense_batches",
    "dense_forward",
    "find_patch_size",
    "pooling_of",
    "takes_any_size",
]

Output = TypeVar("Output")


def attach_pool(
    model: nn.Module, kind: str, top_k: int | float | None = None, sigma: float | None = None, variant: str = "release"
) -> nn.Module:
    """Replace, in place, what a host pools its tokens with (see `TokenPool`); a later call replaces an earlier one.

    `model` is any supported host, bare or inside torch.compile, DDP or ClassificationNet, and is returned. Best done
    before torch.compile: whatever was compiled in this process is compiled anew when next called.
    ValueError: Unsupported host (the message lists the supported ones), a kind that the host cannot serve, or invalid
    pool arguments. `top_k` above the number of patches shows in the forward pass.
    """
    pool, host = TokenPool(kind, top_k, sigma, variant), unwrap_host(model)
    find_adapter(model).attach(host, pool)
    shown = ", ".join(f"{key}={value}" for key, value in pooling_of(model).items() if value is not None)
    host.extra_repr = partial(str, shown)  # for print(model); no submodule shows it
    if _is_dynamo_loaded():
        torch.compiler.reset()  # graphs do not guard against new hooks: a graph traced before would keep the old pool
    return model


def attach_last(
    model: nn.Module, top_k: int | float, sigma: float | None = None, variant: str = "release"
) -> nn.Module:
    """`attach_pool` with LaSt: the model reads its global token from the K most stable patches of each channel."""
    return attach_pool(model, "last", top_k, sigma, variant)


def dense_forward(model: nn.Module, images: Tensor) -> DenseOutput:
    """One forward pass of a host, as `attach_pool` takes it, with everything that the diagnostics read.

    Runs the bare host, past compile and DDP wrappers, in whatever train / eval mode, autocast and grad mode the caller
    has set; gradients flow. Images are float [B, 3, H, W], normalised as the host expects. Tokens are read after the
    host's final norm, the global token where its head reads it; what that means for each host is in the adapter's
    docstring. The logits are those of `model(images)`. ValueError for other images, another host, `top_k` above N.

    Example:
        >>> import torch
        >>> from torchvision.models import VisionTransformer
        >>> vit = VisionTransformer(32, 8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5)
        >>> out = dense_forward(attach_last(vit, top_k=4), torch.rand(2, 3, 32, 32))
        >>> out.global_token.shape, out.patch_tokens.shape, out.grid_hw, out.logits.shape
        (torch.Size([2, 16]), torch.Size([2, 16, 16]), (4, 4), torch.Size([2, 5]))
    """
    is_float = isinstance(images, Tensor) and images.is_floating_point()
    if not is_float or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be float [B, 3, H, W], got {describe(images)}")
    # Graphs compiled in place (nn.Module.compile) would not call the hooks that read the tokens.
    eager = torch.compiler.set_stance("force_eager") if _is_dynamo_loaded() else nullcontext()
    with eager:
        return find_adapter(model).dense(unwrap_host(model), images)


def dense_batches(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    device: torch.device,
    read: Callable[[nn.Module, Tensor], Output] = dense_forward,
) -> Iterator[tuple[Output, dict[str, Any]]]:
    """Read a model on every batch, without gradients and keeping nothing in between: the loop of every diagnostic.

    The model is on `device`, in eval mode, of a host that has an adapter. Batches are mappings with "image", float
    [B, 3, H, W], and whatever else. Yields what `read` returned and the batch, both with their tensors on `device`.
    """
    for batch in batches:
        moved = {
            key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }
        with torch.inference_mode():
            output = read(model, moved["image"])
        yield output, moved


def choose_global_token(output: DenseOutput, kind: str, last_pool: LaStPool) -> Tensor:
    """The token that patches are compared with, of a `dense_forward`.

    "trained" is what the model is pooled with, "cls" the class token, "last" `last_pool` of the patches, "mean" their
    mean. ValueError for another kind, and for "cls" where the model has no class token.
    """
    if kind not in GLOBAL_TOKENS:
        raise ValueError(f"global token must be one of {', '.join(GLOBAL_TOKENS)}, got {kind!r}")
    if kind == "trained":
        return output.global_token
    if kind == "last":
        return last_pool(output.patch_tokens)
    if kind == "mean":
        return output.patch_tokens.mean(dim=1)
    if output.cls_token is None:
        raise ValueError("this model has no class token to take as the global token; choose trained, last or mean")
    return output.cls_token


def pooling_of(model: nn.Module) -> dict[str, str | int | float | None]:
    """What a host pools with, in the form that checkpoints and results record.

    {"pool": kind, "top_k": ..., "variant": ..., "sigma": ...} of the attached pool, the last three None unless the kind
    is "last"; {"pool": "host"} if nothing was attached.
    """
    pool = find_adapter(model).attached(unwrap_host(model))
    if pool is None:
        return {"pool": "host"}
    return {"pool": pool.kind, "top_k": pool.top_k, "variant": pool.variant, "sigma": pool.sigma}


def _is_dynamo_loaded() -> bool:
    """Whether anything can have been compiled; importing dynamo only to ask would cost seconds."""
    return "torch._dynamo" in sys.modules


@torch.inference_mode()
def find_patch_size(model: nn.Module, side: int) -> int:
    """Side in pixels of a host's patches (of a ConvNet, its stride), on any device, in eval mode.

    `side` is that of the square images that it was made for, for a ConvNet a multiple of its stride. ValueError for
    patches that are not square, or do not fill the image.
    """
    height, width = dense_forward(model, _zeros(model, side, side)).grid_hw
    if height != width or side % height:
        raise ValueError(
            f"{side} x {side} pixels make a grid of {height} x {width} patches (h x w), but padding to whole patches "
            "needs square ones that fill the image"
        )
    return side // height


@torch.inference_mode()
def takes_any_size(model: nn.Module, side: int, patch_size: int) -> bool:
    """Whether a host, as in `find_patch_size`, takes an image that is a patch wider than what it was made for."""
    try:
        dense_forward(model, _zeros(model, side, side + patch_size))
    except (ValueError, AssertionError):  # timm asserts its input size
        return False
    return True


def _zeros(model: nn.Module, height: int, width: int) -> torch.Tensor:
    """An image in the type of the first convolution, which CLIP's precisions do not give to every weight."""
    weight = next(weight for weight in model.parameters() if weight.ndim == 4)
    return torch.zeros(1, 3, height, width, dtype=weight.dtype, device=weight.device)
