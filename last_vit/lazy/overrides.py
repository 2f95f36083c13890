"""`key=value` overrides for LazyConfigs that refuse unknown keys.

detectron2 adds a mistyped key to the config without a word; here every key must be in the config, or be a parameter of
the call that the config describes there (`model.top_k` for a `LazyCall(ClassificationNet)(model=...)`). Values follow
detectron2's own syntax. Imports detectron2 only when called.
"""

import difflib
import inspect
from collections.abc import Sequence
from typing import Any


def apply_overrides(cfg: Any, overrides: Sequence[str]) -> Any:
    """Change a LazyConfig in place.

    Args:
        cfg: An omegaconf config, as `LazyConfig.load` returns it.
        overrides: "a.b=value", as on detectron2's command line.

    Returns:
        `cfg`.

    Raises:
        ValueError: An override without "=", an unknown key (the message lists the allowed ones), or a bad value: of
            another kind than the config's own, but for null where the call takes None by default.
    """
    from detectron2.config import LazyConfig
    from omegaconf import OmegaConf

    for override in overrides:
        key, separator, _ = override.partition("=")
        if not separator or not key:
            raise ValueError(f"an override looks like key=value, got {override!r}")
        _check_key(cfg, key)
    keys = [override.partition("=")[0] for override in overrides]
    before = {key: OmegaConf.select(cfg, key) for key in keys}
    try:
        LazyConfig.apply_overrides(cfg, list(overrides))
    except Exception as error:  # hydra's parser raises its own kinds
        raise ValueError(f"cannot apply the overrides {list(overrides)}: {error}") from error
    for key, old in before.items():
        parent, _, name = key.rpartition(".")
        parameter = _parameters(OmegaConf.select(cfg, parent) if parent else cfg).get(name)
        new = OmegaConf.select(cfg, key)
        if not (new is None and parameter is not None and parameter.default is None):
            _check_value(key, old, new)
    return cfg


def _check_key(cfg: Any, key: str) -> None:
    from omegaconf import DictConfig, ListConfig

    node, parts = cfg, key.split(".")
    for depth, part in enumerate(parts):
        if isinstance(node, ListConfig):
            allowed = [str(i) for i in range(len(node))]
        elif isinstance(node, DictConfig):
            allowed = sorted({str(name) for name in node} | set(_parameters(node)) - {"_target_"})
        else:
            allowed = []
        if part not in allowed:
            above = ".".join(parts[:depth]) or "the config"
            close = difflib.get_close_matches(part, allowed, n=1)
            raise ValueError(
                f"unknown override key {key!r}: {above} has {', '.join(allowed) or 'no keys'}"
                + (f"; did you mean {'.'.join([*parts[:depth], close[0]])}?" if close else "")
            )
        if depth + 1 < len(parts):
            node = node[int(part)] if isinstance(node, ListConfig) else node.get(part)


def _check_value(key: str, old: Any, new: Any) -> None:
    """Refuse a plain value of another kind than the config's own, which would fail far from here."""
    numbers = isinstance(old, float) or key.endswith("top_k")  # top_k is a number of patches or a share of them
    allowed = (int, float) if numbers and isinstance(old, int | float) else type(old)
    is_plain = isinstance(old, bool | int | float | str)
    if is_plain and (not isinstance(new, allowed) or isinstance(new, bool) != isinstance(old, bool)):
        hint = f"; quote text that looks like another kind: '{key}=\"{new}\"'" if isinstance(old, str) else ""
        raise ValueError(f"{key} must be of type {type(old).__name__} (it was {old!r}), got {new!r}{hint}")


def _parameters(node: Any) -> dict[str, inspect.Parameter]:
    """Named parameters of the call that a config node describes; none for a plain node."""
    from omegaconf import DictConfig

    target = node.get("_target_") if isinstance(node, DictConfig) else None
    if target is None:
        return {}
    if isinstance(target, str):
        from detectron2.utils.registry import locate

        target = locate(target)
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # some C functions have none
        return {}
    return {name: parameter for name, parameter in parameters.items() if parameter.kind not in _VARIADIC}


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
