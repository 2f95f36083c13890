"""Models from one line of text, with the preprocessing that belongs to each.

| spec                          | model                                                                             |
|-------------------------------|-----------------------------------------------------------------------------------|
| `torchvision:<name>`          | torchvision classification model, random weights                                  |
| `timm:<name>`                 | timm model, random weights; a tag (`vit_small_patch16_224.dino`) picks preprocessing |
| `open_clip:<arch>[/<file>]`   | open_clip model, arch also the path of a model config (.json); see clip_models.py |
| `dino:<arch>/<patch>`         | DINO's ViT (`dino:vit_small/16`), see dino_vit.py                                 |
| `<config>.py`                 | the `model` of a detectron2 LazyConfig file                                       |

Nothing is downloaded. Loading other checkpoints is checkpoint.py's business, pooling is dense.py's. A host library is
imported only when its form is used.
"""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from last_vit.preprocessing import Preprocessing

FORMS = "torchvision:<name>, timm:<name>, open_clip:<arch or .json>[/<file>], dino:<arch>/<patch> or <config>.py"


def build_model(
    spec: str, num_classes: int | None = None, image_size: int | None = None, opts: Sequence[str] = ()
) -> nn.Module:
    """Build the model that `spec` names, in eval mode on the CPU.

    Args:
        spec: One of `FORMS`.
        num_classes: Size of the classifier for torchvision and timm; None is the host's own.
        image_size: Side of the square input in pixels; None is the host's own. Ignored by models that take any size
            and by configs, which set their own. A DINO ViT takes any size; its position embedding is made for this.
        opts: `key=value` overrides, for configs only.

    Returns:
        The model.

    Raises:
        ValueError: Unknown form or name (with the closest known ones), `opts` without a config, an unknown override, an
            open_clip checkpoint that is broken, of another architecture or activation.
        FileNotFoundError: No such config or checkpoint file.
        ImportError: The host library is not installed; the message says how to install it.
    """
    host, name = _parse(spec)
    if opts and host != "config":
        raise ValueError(f"overrides are for a <config>.py, but the model is {spec!r}; leave out {list(opts)}")
    if host == "torchvision":
        model = _build_torchvision(name, num_classes, image_size)
    elif host == "timm":
        model = _build_timm(name, num_classes, image_size)
    elif host == "open_clip":
        model = _build_open_clip(name, image_size)
    elif host == "dino":
        model = _build_dino(name, image_size)
    else:
        model = _instantiate(_load_config(name, opts).model)
    return model.eval()


def preprocessing_of(
    spec: str, model: nn.Module, image_size: int | None = None, resize: int | None = None, opts: Sequence[str] = ()
) -> Preprocessing:
    """The evaluation preprocessing that belongs to `build_model(spec)`.

    timm and open_clip record it in the model; a config in `dataloader.test.dataset.transform`; a DINO ViT gets the size
    that it was trained on and a shorter side of 256 / 224 of it; everything else gets ImageNet's 256 / 224. Images are
    always resized by the shorter side and centre-cropped, which is what boxes are mapped with, also where a host would
    squash them.

    Args:
        spec: As for `build_model`.
        model: What `build_model` returned.
        image_size: Another crop in pixels; `resize` then keeps its ratio to the crop.
        resize: Another length of the shorter side in pixels.
        opts: As for `build_model`.

    Returns:
        The preprocessing.

    Raises:
        ValueError: A config whose transform does not tell resize, crop, mean and std; a crop larger than resize.
    """
    host, name = _parse(spec)
    if host == "timm":
        found = _from_timm(model.pretrained_cfg)
    elif host == "open_clip":
        from last_vit.clip_models import clip_preprocessing

        found = clip_preprocessing(model)
    elif host == "dino":
        side = model.patch_embed.img_size[0]
        found = Preprocessing(resize=round(side * 256 / 224), crop=side, interpolation="bicubic")
    elif host == "config":
        found = _from_config(name, opts)
    else:
        found = Preprocessing()
    if image_size is not None:
        found = replace(found, resize=round(image_size * found.resize / found.crop), crop=image_size)
    if resize is not None:
        found = replace(found, resize=resize)
    if not 1 <= found.crop <= found.resize:
        raise ValueError(f"the crop must be in [1, resize], got crop {found.crop} and resize {found.resize} pixels")
    return found


def is_config(spec: str) -> bool:
    """True for a spec that is a LazyConfig file, which may set its own pooling."""
    return _parse(spec)[0] == "config"


def trained_image_size(spec: str, weights: Mapping[str, Tensor]) -> int | None:
    """The `image_size` to build a model with so that weights fit it, where they tell: for a DINO ViT; else None."""
    host, name = _parse(spec)
    if host != "dino":
        return None
    from last_vit.dino_vit import trained_img_size

    return trained_img_size(weights, _dino_parts(name)[1])


def _parse(spec: str) -> tuple[str, str]:
    """Spec -> (torchvision | timm | open_clip | dino | config, the rest)."""
    host, separator, name = spec.partition(":")
    if separator and host in ("torchvision", "timm", "open_clip", "dino") and name:
        return host, name
    if spec.endswith(".py"):
        return "config", spec
    raise ValueError(f"a model is given as {FORMS}, got {spec!r}")


def _build_torchvision(name: str, num_classes: int | None, image_size: int | None) -> nn.Module:
    import torchvision

    _check_name(name, torchvision.models.list_models(module=torchvision.models), "torchvision classification model")
    kwargs: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if image_size is not None and name.startswith("vit_"):
        kwargs["image_size"] = image_size
    return torchvision.models.get_model(name, weights=None, **kwargs)


def _build_timm(name: str, num_classes: int | None, image_size: int | None) -> nn.Module:
    import timm

    _check_name(name.partition(".")[0], timm.list_models(), "timm model")
    kwargs: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    cfg = timm.get_pretrained_cfg(name)
    if image_size is not None and cfg is not None and cfg.fixed_input_size:
        kwargs["img_size"] = image_size
    return timm.create_model(name, pretrained=False, **kwargs)


def _build_open_clip(name: str, image_size: int | None) -> nn.Module:
    from last_vit.clip_models import build_clip, split_clip_spec

    arch, file = split_clip_spec(name)
    return build_clip(arch, file or None, image_size=image_size)[0]


def _build_dino(name: str, image_size: int | None) -> nn.Module:
    from last_vit.dino_vit import build_dino_vit

    arch, patch_size = _dino_parts(name)
    return build_dino_vit(arch, patch_size, 224 if image_size is None else image_size)


def _dino_parts(name: str) -> tuple[str, int]:
    """`vit_small/16` -> its architecture and patch size."""
    arch, _, patch_size = name.partition("/")
    if not patch_size.isdecimal():
        raise ValueError(f"a DINO ViT is given as dino:<arch>/<patch>, such as dino:vit_small/16, got 'dino:{name}'")
    return arch, int(patch_size)


def _load_config(path: str, opts: Sequence[str]) -> Any:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no config file at {path!r}; a model is given as {FORMS}")
    try:
        from last_vit.lazy_config import apply_overrides, load_file
    except ImportError as error:
        raise ImportError(
            f"{path} is a detectron2 LazyConfig: install detectron2 with tools/install_detectron2.sh"
        ) from error
    cfg = load_file(path)
    if "model" not in cfg:
        raise ValueError(f"{path} defines no 'model'; it defines {', '.join(map(str, cfg))}")
    return apply_overrides(cfg, opts)


def _instantiate(node: Any) -> Any:
    from detectron2.config import instantiate

    return instantiate(node)


def _from_timm(cfg: dict[str, Any]) -> Preprocessing:
    crop = cfg["input_size"][-1]
    interpolation = cfg["interpolation"] if cfg["interpolation"] in ("bilinear", "bicubic") else "bicubic"
    return Preprocessing(tuple(cfg["mean"]), tuple(cfg["std"]), math.floor(crop / cfg["crop_pct"]), crop, interpolation)


def _from_config(path: str, opts: Sequence[str]) -> Preprocessing:
    from omegaconf import OmegaConf

    node = OmegaConf.select(_load_config(path, opts), "dataloader.test.dataset.transform")
    if node is None:
        return Preprocessing()
    transform = _instantiate(node)
    try:
        return Preprocessing(
            tuple(transform.mean), tuple(transform.std), transform.resize, transform.crop, transform.interpolation
        )
    except AttributeError as error:
        raise ValueError(
            f"{path}: dataloader.test.dataset.transform must be last_vit.data.transforms.EvalTransform, which tells "
            f"its resize, crop, mean and std; got {type(transform).__name__}"
        ) from error


def _check_name(name: str, known: Iterable[str], kind: str) -> None:
    known = list(known)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"; close ones: {', '.join(close)}" if close else f"; there are {len(known)}, for example {known[0]}"
        raise ValueError(f"unknown {kind} {name!r}{hint}")
