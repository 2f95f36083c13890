"""What every adapter shares: interface, dense output, host unwrapping, and hooks that leave no trace in a model.

An adapter finds the one place where its host library reads the global token and puts a `TokenPool` there. The pool is
held by a plain object (an instance attribute or a forward hook), never registered as a submodule, so parameters,
buffers, state-dict keys and the host's own forward stay as they are. No host library is imported in this folder: hosts
are known by the names of their classes.

Letters: B images, N patches, P prefix tokens, D channels, C classes or embedding size.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from last_vit.token_pool import TokenPool

_SLOT = "_last_vit_hook"


class DenseOutput(NamedTuple):
    """One forward pass, read before, at and after the host's pooling."""

    global_token: Tensor  # [B, D], what the host pools (with whatever pool is attached)
    patch_tokens: Tensor  # [B, N, D], row by row over the grid, in the same space as `global_token`
    grid_hw: tuple[int, int]  # (h, w) of the patch grid, h * w = N
    logits: Tensor  # [B, C], the host's own output; for a CLIP tower its un-normalised image embedding
    cls_token: Tensor | None  # [B, D] in the same space; None for a host without class token


class Blocks(NamedTuple):
    """The residual blocks of a host, in the order in which they run."""

    modules: tuple[nn.Module, ...]  # each returns all tokens, prefix tokens first; none for a ConvNet
    batch_first: bool  # they return [B, P + N, D]; else [P + N, B, D]
    has_final_norm: bool  # a norm stands between the last of them and the tokens of `Adapter.dense`


class Adapter(Protocol):
    """The pooling seam of one host library. Stateless; all methods but `matches` take a host that matches."""

    hosts: str
    """The supported hosts in words, for error texts."""

    def matches(self, model: nn.Module) -> bool:
        """Whether this adapter knows the class of `model`."""

    def attach(self, model: nn.Module, pool: TokenPool) -> None:
        """Pool with `pool` from now on, in place of the host's pooling or of an earlier one."""

    def attached(self, model: nn.Module) -> TokenPool | None:
        """The pool that `attach` put there, or None."""

    def dense(self, model: nn.Module, images: Tensor) -> DenseOutput:
        """One forward pass of the host on [B, 3, H, W] images."""

    def blocks(self, model: nn.Module) -> Blocks:
        """The blocks after which visualization/layer_tokens.py reads the tokens."""


def class_names(model: nn.Module) -> list[str]:
    """Full names (module.qualname) of the class of `model` and of all its bases, nearest first."""
    return [f"{cls.__module__}.{cls.__qualname__}" for cls in type(model).__mro__]


def unwrap_host(model: nn.Module) -> nn.Module:
    """The host inside torch.compile's, DDP's and our own wrappers, however deep.

    A wrapper of ours is any module with a property `host_model` that names the module it wraps.
    """
    while isinstance(model, nn.Module):
        if "_orig_mod" in model._modules:
            model = model._orig_mod
        elif isinstance(model, DistributedDataParallel | DataParallel):
            model = model.module
        elif hasattr(type(model), "host_model"):
            model = model.host_model
        else:
            return model
    raise TypeError(f"expected a model (torch.nn.Module), got a {type(model).__name__}")


def check_class_token(model: nn.Module, pool: TokenPool, has_class_token: bool) -> None:
    """Raise a ValueError for pools that read a class token on hosts without one."""
    if pool.kind in ("cls", "attention") and not has_class_token:
        raise ValueError(
            f"pool {pool.kind!r} needs a class token and this {type(model).__name__} has none; use mean, max or last"
        )


def check_image_size(model: nn.Module, images: Tensor, image_hw: tuple[int, int]) -> None:
    """Raise a ValueError for images of another size than a host with fixed position embeddings was built for."""
    if tuple(images.shape[2:]) != tuple(image_hw):
        raise ValueError(
            f"images are {tuple(images.shape[2:])} (height, width), this {type(model).__name__} takes "
            f"{tuple(image_hw)} only; resize the images or build the model for their size"
        )


def check_global_token(model: nn.Module, global_token: Tensor, num_channels: int) -> None:
    """Raise a ValueError for hosts whose read-out is not one token of the patches' width."""
    if global_token.ndim != 2 or global_token.shape[1] != num_channels:
        raise ValueError(
            f"this {type(model).__name__} reads {tuple(global_token.shape)} instead of one global token "
            f"[B, {num_channels}]; build it with average or token pooling, or call attach_pool first"
        )


def split_tokens(
    tokens: Tensor, num_prefix_tokens: int, has_class_token: bool, grid_hw: tuple[int, int]
) -> tuple[Tensor | None, Tensor]:
    """[B, P + N, D] -> class token [B, D] (None without one) and patch tokens [B, N, D], which must fill the grid."""
    patch_tokens = tokens[:, num_prefix_tokens:]
    height, width = grid_hw
    if patch_tokens.shape[1] != height * width:
        raise ValueError(
            f"the encoder returned {patch_tokens.shape[1]} patch tokens for a {height} x {width} grid; "
            f"patch dropout must be off: call model.eval()"
        )
    return (tokens[:, 0] if has_class_token else None), patch_tokens


def has_norm(*modules: nn.Module) -> bool:
    """Whether any of a host's places for a final norm holds one; hosts put an identity where they have none."""
    return any(not isinstance(module, nn.Identity) for module in modules)


def first_output(output: Any) -> Tensor:
    """The first of several outputs, as of Inception in training, a tower with output_tokens, or blocks on lists."""
    return output[0] if isinstance(output, tuple | list) else output


class PoolHook:
    """What stands in for a host's pooling; a plain object that holds the pool, so that the host gains no submodule.

    `late_norm` is the norm that a host applies after its pooling. The pool applies it (see `TokenPool`), so that it
    chooses among tokens after it, and the pooled token [B, D] passes it as it is.
    """

    def __init__(self, pool: TokenPool, late_norm: nn.Module | None = None) -> None:
        self.pool = pool
        self.late_norm = late_norm if late_norm is not None and has_norm(late_norm) else None
        if self.late_norm is not None:
            install_hook(self.late_norm, _PassPooled(pool))

    def read(self, tokens: Tensor, num_prefix_tokens: int) -> Tensor:
        """[B, P + N, D] -> [B, D], normalised, as `TokenPool`."""
        # not the module, whose hook lets pooled tokens pass
        return self.pool(tokens, num_prefix_tokens, None if self.late_norm is None else self.late_norm.forward)


class _PassPooled(PoolHook):
    """On a norm after the pooling: undoes it for one token per image, which the pool has normalised."""

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return args[0] if args[0].ndim == 2 else output


class FirstToken(PoolHook):
    """Hook of a final norm whose first token the host reads: [B, P + N, D] -> the same, with the pooled token first."""

    def __init__(self, pool: TokenPool, num_prefix_tokens: int, late_norm: nn.Module | None = None) -> None:
        super().__init__(pool, late_norm)
        self.num_prefix_tokens = num_prefix_tokens

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self.pool.kind == "cls" and self.late_norm is None:
            return output  # costs nothing
        return torch.cat([self.read(output, self.num_prefix_tokens)[:, None], output[:, 1:]], dim=1)


class OnePatch(FirstToken):
    """Hook of tokens whose patches the host averages: [B, P + N, D] -> [B, P + 1, D], with the pooled token last."""

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        pooled = self.read(output, self.num_prefix_tokens)[:, None]
        return torch.cat([output[:, : self.num_prefix_tokens], pooled], dim=1)


def pool_of(seam: Any) -> TokenPool | None:
    """The pool, if `seam` is a `PoolHook`."""
    return seam.pool if isinstance(seam, PoolHook) else None


def install_hook(module: nn.Module, hook: PoolHook, on_input: bool = False) -> None:
    """Hook the output (or the input) of `module`, in place of an earlier hook of ours.

    torch calls `hook(module, args)` or `hook(module, args, output)`. Hook and handle stand in a plain attribute as
    well: that is how the next call finds them, also in a deep copy.
    """
    if _SLOT in vars(module):
        vars(module)[_SLOT][1].remove()
    register = module.register_forward_pre_hook if on_input else module.register_forward_hook
    setattr(module, _SLOT, (hook, register(hook)))


def installed_pool(module: nn.Module) -> TokenPool | None:
    """The pool of the hook that `install_hook` put on `module`, or None."""
    return pool_of(vars(module)[_SLOT][0]) if _SLOT in vars(module) else None


def run_around(seam: nn.Module, run: Callable[[], Any]) -> tuple[Any, Any, Any]:
    """What `seam` returned in `run()`: as the host made it, and behind our hook; and what `run` returned."""
    seen: dict[str, Any] = {}

    def record(name: str) -> Callable[..., None]:
        # A mapping is copied, for its owner may change it later.
        return lambda _, args, output: seen.update({name: dict(output) if isinstance(output, dict) else output})

    with seam.register_forward_hook(record("own"), prepend=True), seam.register_forward_hook(record("read")):
        returned = run()
    return seen["own"], seen["read"], returned
