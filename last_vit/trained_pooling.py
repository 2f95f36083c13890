"""Which pooling a model gets: the one asked for, else the one that its weights were trained with."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from last_vit.dense import attach_pool, pooling_of


def attach_trained_pooling(
    model: nn.Module,
    metadata: Mapping[str, Any],
    pool: str | None = None,
    top_k: int | float | None = None,
    variant: str | None = None,
    from_config: bool = False,
) -> str:
    """Attach the pooling that the arguments, the checkpoint or its layout ask for.

    Without `pool`: what the weights' metadata record under "pooling"; else what a config's model sets; else, for files
    in the released trainer's layout, LaSt with K = 1 as released; else the host's own read-out (CLS for a plain ViT).

    Args:
        model: Changed in place.
        metadata: Of its weights, as `load_checkpoint` gives it; "pooling_source" is who recorded the pooling, in words,
            where that is not the checkpoint itself.
        pool: One of `POOLS`, in place of the default.
        top_k: For pool "last", in place of the recorded one; 1 when nothing is recorded.
        variant: For pool "last", in place of the recorded one; "release" when nothing is recorded.
        from_config: Whether what the model is pooled with now was set by a config.

    Returns:
        The reason in words.

    Raises:
        ValueError: `top_k` or `variant` without pool "last"; a config and a record that contradict each other.
    """
    recorded = dict(metadata["pooling"] or {})
    recorded_by = metadata.get("pooling_source") or "recorded in the checkpoint"
    configured = pooling_of(model) if from_config else {"pool": "host"}
    if pool is None and recorded.get("pool") == "host" and configured["pool"] != "host":
        raise ValueError(
            f"the checkpoint records the host's own read-out, but the config pools with {configured['pool']!r}; "
            f"override it (model.pool=host), or name the pool that you want"
        )
    if pool is not None:
        kind, source = pool, "asked for"
    elif recorded.get("pool", "host") != "host":
        kind, source = recorded["pool"], recorded_by
    elif configured["pool"] != "host":
        recorded = configured
        kind, source = recorded["pool"], "set by the config; the checkpoint records none"
    elif metadata["layout"] == "model" and metadata["iteration"] is not None and not recorded:
        kind, source = "last", "assumed: the released trainer's layout, which records no pooling"
    elif recorded:
        kind, source = None, f"the host's own read-out, {recorded_by}"
    else:
        kind, source = None, "the host's own read-out; the checkpoint records none"
    if kind != "last":
        if top_k is not None or variant is not None:
            raise ValueError(f"top_k and variant are for pool 'last', and this model's pooling is {kind or 'host'!r}")
        if kind is not None:
            attach_pool(model, kind)
        return source
    was_last = recorded.get("pool") == "last"
    attach_pool(
        model,
        "last",
        top_k=top_k if top_k is not None else recorded["top_k"] if was_last else 1,
        sigma=recorded.get("sigma") if was_last else None,
        variant=variant or (recorded.get("variant") if was_last else None) or "release",
    )
    return source
