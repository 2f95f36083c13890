"""Models from one text, with their weights: what a model is called, what it is, where its weights are.

    [NAME=]SPEC[@CHECKPOINT][,pool=KIND][,top_k=K][,variant=release|paper][,seed=S]

SPEC is one of `MODEL_FORMS`, docs/hosts.md tells them apart. CHECKPOINT is a local file in any layout that
checkpoint_layouts.py knows, `pretrained`, which timm downloads, or `random`, a control drawn with `seed` (0). `pool`,
`top_k` and `variant` stand in place of what the checkpoint records.
"""

import math
import re
from argparse import ArgumentTypeError
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
from torch import nn
from torchvision import models as torchvision_models

from last_vit import hf_models, preprocessing
from last_vit.checkpoint import find_classifier, load_checkpoint, read_weights, tensors_sha256
from last_vit.checkpoint_layouts import fit_names
from last_vit.command_line import MODEL_FORMS, MODEL_HELP, patch_count
from last_vit.dense import pooling_of
from last_vit.dino_vit import build_dino_vit, dino_parts
from last_vit.names import POOLS, check_name
from last_vit.preprocessing import Preprocessing
from last_vit.runtime import error_text, seeded_weights
from last_vit.weights import TrainedModel, attach_trained_pooling, find_released

_HOSTS = ("torchvision", "timm", "open_clip", "dino", "hf", "last_vit")
_CONV_STEM = re.compile(r"^vitamin_|^vit_\w+?_r(\d|_|esnet)")  # timm's hybrids: ViTamin, R50 + ViT
_OPTIONS = ("pool", "top_k", "variant", "seed")
PRETRAINED = "pretrained"
# A name may hold "=" ("LaSt K=1"): it is everything before the "=" behind which a spec begins.
_NAMED = re.compile(rf"(?P<name>.*)=(?P<rest>(?:{'|'.join(_HOSTS)}):.*|[^=]*\.py(?:[@,].*)?)", re.DOTALL)


@dataclass(frozen=True)
class ModelArgument:
    """A parsed model text: what tables and pictures call the model, and the arguments of `load_trained_model`."""

    name: str
    spec: str
    checkpoint: str | None = None
    seed: int | None = None
    pool: str | None = None
    top_k: int | float | None = None
    variant: str | None = None

    def load(self, image_size: int | None = None, resize: int | None = None, **clip_options: Any) -> TrainedModel:
        """`load_trained_model` with these parts; its errors, with the model's name before them."""
        parts = {"pool": self.pool, "top_k": self.top_k, "variant": self.variant, "random_seed": self.seed}
        parts |= {"image_size": image_size, "resize": resize}
        with naming(self):
            return load_trained_model(self.spec, self.checkpoint, **parts, **clip_options)


@contextmanager
def naming(argument: ModelArgument) -> Iterator[None]:
    """Put the model's name before what a ValueError or FileNotFoundError of the block says."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"model {argument.name!r}: {error_text(error)}") from error


def parse_model_argument(text: str) -> ModelArgument:
    """Read one model text; checks its form (ValueError), opens no file.

    Without NAME the model is called after its checkpoint's folder and file, or after its spec.
    """
    named = _NAMED.fullmatch(text)
    name, rest = (named["name"].strip(), named["rest"]) if named else ("", text)
    options: dict[str, str] = {}
    while found := re.fullmatch(r"(.*),(\w+)=([^,@/]*)", rest, re.DOTALL):
        rest, key, value = found.groups()
        if key not in _OPTIONS or key in options:
            what = f"option {key!r} stands twice" if key in options else f"unknown option {key!r}"
            raise ValueError(f"{what} in model {text!r}; known: {', '.join(_OPTIONS)}")
        options[key] = value
    spec, has_checkpoint, file = rest.partition("@")
    if not spec or (has_checkpoint and not file):
        raise ValueError(f"a model is given as {MODEL_HELP}; got {text!r}")
    is_random, pool = file == "random", options.get("pool")
    if pool not in (None, *POOLS):
        raise ValueError(f"pool must be one of {', '.join(POOLS)}, got {pool!r}")
    try:
        top_k = patch_count(options["top_k"]) if "top_k" in options else None
    except ArgumentTypeError as error:
        raise ValueError(f"top_k {error}") from error
    if "seed" in options and not (is_random and options["seed"].isdecimal()):
        raise ValueError(f"seed must be a whole number, for random weights (@random) only, got {options['seed']!r}")
    if file in ("random", PRETRAINED):
        called = f"{spec.partition(':')[2] or Path(spec).stem}, {file}"
    else:
        called = "/".join((*Path(file).parent.parts[-1:], Path(file).stem)) or spec
    return ModelArgument(
        name=name or called,
        spec=spec,
        checkpoint=None if is_random or not file else file,
        seed=int(options.get("seed", "0")) if is_random else None,
        pool=pool,
        top_k=top_k,
        variant=options.get("variant"),
    )


def parse_model_arguments(texts: Sequence[str]) -> list[ModelArgument]:
    """Read the model texts of one command, whose names must differ, for they label its rows and pictures."""
    arguments = [parse_model_argument(text) for text in texts]
    for name, count in Counter(argument.name for argument in arguments).items():
        if count > 1:
            raise ValueError(f"two models are called {name!r}; give them names: --model 'A=...' --model 'B=...'")
    return arguments


def load_trained_model(
    spec: str,
    checkpoint: str | Path | None,
    *,
    opts: Sequence[str] = (),
    image_size: int | None = None,
    resize: int | None = None,
    pool: str | None = None,
    top_k: int | float | None = None,
    variant: str | None = None,
    random_seed: int | None = None,
    **clip_options: Any,
) -> TrainedModel:
    """Build a model on the CPU, load its weights strictly, and attach its pooling (see `attach_trained_pooling`).

    `spec` is one of `MODEL_FORMS`; open_clip's give a `LoadedClip`. `checkpoint` is the file, for timm also
    "pretrained"; None for `open_clip:<arch>/<file>`, hf, and random weights, which `random_seed` draws: a control,
    never a default. `opts` are `key=value` overrides, for configs only. `image_size` is the crop in pixels, for which a
    ViT is resized after loading, None the weights' own; `resize` another length of the shorter side. `clip_options` are
    `device` and `precision` of `load_clip`. ValueError for a bad spec, and for weights that do not fit or are none.
    """
    host, name = _parse(spec)
    if host == "last_vit":
        record, own = find_released(name, checkpoint, pool, top_k, random_seed)
        size = {"image_size": image_size, "resize": resize}
        found = load_trained_model(**own, **size, variant=variant, opts=opts, **clip_options)
        source = found.pooling_source if pool or top_k or variant else record.pooling_words
        return replace(found, preprocessing=record.preprocessing.resized(image_size, resize), pooling_source=source)
    arch, file = _clip_models().split_clip_spec(name) if host == "open_clip" else ("", "")
    if host == "hf" and random_seed is None:
        checkpoint = checkpoint or PRETRAINED  # a name brings its weights
    given = [weights for weights in (file or None, checkpoint, random_seed) if weights is not None]
    if len(given) != 1:
        raise ValueError(
            f"{'several sets of' if given else 'no'} weights for {spec!r}: give one checkpoint, or ask for random "
            f"weights as a control (random_seed, or {spec}@random on a command line); they are no default"
        )
    if checkpoint == PRETRAINED and host not in ("timm", "hf"):
        raise ValueError(f"only timm:<name>@pretrained is downloaded; for {spec!r} give a file, {spec}@<file>")
    asked = {"pool": pool, "top_k": top_k, "variant": variant}
    if host == "open_clip":
        weights = {"checkpoint": file or checkpoint, "random_seed": random_seed}
        clip = _clip_models().load_clip(arch, **weights, **asked, image_size=image_size, **clip_options)
        return replace(clip, preprocessing=clip.preprocessing.resized(image_size, resize))
    read = None if checkpoint in (None, PRETRAINED) else read_weights(checkpoint)
    weights = {} if read is None else read.weights
    num_classes = len(weights[classifier]) if (classifier := find_classifier(weights)) else None
    asked_classes = None if host == "config" else 0 if host == "timm" and weights and not num_classes else num_classes
    size = preprocessing.trained_img_size(weights) if host in ("dino", "torchvision") else None
    with nullcontext() if random_seed is None else seeded_weights(random_seed):
        model = build_model(spec, asked_classes, size or image_size, opts, checkpoint == PRETRAINED)
    digest = read and read.sha256
    if checkpoint == PRETRAINED:  # of timm's no file is known: as it builds them, for this image size
        digest = hf_models.weights_sha256(name) if host == "hf" else tensors_sha256(model.state_dict())
    if read is not None:
        if host == "timm":
            preprocessing.take_grid(model, fit_names(weights, model.state_dict()))
        load_checkpoint(model, read)
    if image_size is not None and host in ("timm", "torchvision"):
        preprocessing.set_image_size(model, image_size)
    source = attach_trained_pooling(model, read, **asked, from_config=host == "config")
    own = "num_labels" if host == "hf" else "num_classes"
    return TrainedModel(
        model=model,
        preprocessing=preprocessing_of(spec, model, image_size, resize, opts),
        pooling=pooling_of(model),
        pooling_source=source,
        checkpoint_sha256=digest and digest[:16],
        num_classes=getattr(model, own, 0) or None if checkpoint == PRETRAINED else num_classes,
    )


def build_model(
    spec: str,
    num_classes: int | None = None,
    image_size: int | None = None,
    opts: Sequence[str] = (),
    pretrained: bool = False,
) -> nn.Module:
    """Build the model that `spec` names, with random weights unless `pretrained`, in eval mode on the CPU.

    `spec` is one of `MODEL_FORMS`, without a file; `num_classes` is for torchvision and timm, `image_size` the side in
    pixels that a position embedding is made for (configs set theirs), None the host's own; `opts` are for configs only.
    ValueError for an unknown form, name (with close ones) or override, `opts` without a config, nothing to fetch.
    """
    host, name = _parse(spec)
    kwargs: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if opts and host != "config":
        raise ValueError(f"overrides are for a <config>.py, but the model is {spec!r}; leave out {list(opts)}")
    if host == "config":
        return _instantiated(name, opts, "model").eval()
    if host == "open_clip":
        return _clip_models().create_clip(_clip_models().resolve_architecture(name), image_size=image_size)
    if host == "hf":
        return hf_models.build_hf(name, pretrained)
    if host == "dino":
        return build_dino_vit(*dino_parts(name), 224 if image_size is None else image_size).eval()
    if host == "timm":
        check_name(name, [*timm.list_models(), *timm.list_models(include_tags=True)], "timm model")
        cfg = timm.get_pretrained_cfg(name)
        if image_size is not None and cfg is not None and cfg.fixed_input_size and not _CONV_STEM.search(name):
            kwargs["img_size"] = image_size  # a convolutional stem's stride would be told from it
        try:
            return timm.create_model(name, pretrained=pretrained, **kwargs).eval()
        except Exception as error:  # a download fails in many ways
            if not pretrained:
                raise
            raise ValueError(f"timm cannot fetch {name!r} ({error_text(error)}); give a file: {spec}@<file>") from error
    check_name(name, torchvision_models.list_models(module=torchvision_models), "torchvision classification model")
    if image_size is not None and name.startswith("vit_"):
        preprocessing.check_whole_patches(image_size, int(name.rpartition("_")[2]))
        kwargs["image_size"] = image_size
    return torchvision_models.get_model(name, weights=None, **kwargs).eval()


def preprocessing_of(
    spec: str, model: nn.Module, image_size: int | None = None, resize: int | None = None, opts: Sequence[str] = ()
) -> Preprocessing:
    """The evaluation preprocessing that belongs to `model`, which is `build_model(spec)`.

    timm and open_clip record it in the model; a config in `dataloader.test.dataset.transform`; a ViT of DINO or
    torchvision gets the size that it was made for and a shorter side of 256 / 224 of it; everything else gets
    ImageNet's 256 / 224. Images are always resized by the shorter side and centre-cropped, which is what boxes are
    mapped with, also where a host would squash them. `image_size` and `resize` are as in `Preprocessing.resized`.
    ValueError: A config whose transform does not tell resize, crop, mean and std; a crop larger than resize.
    """
    host, name = _parse(spec)
    found = Preprocessing()
    if host == "timm":
        cfg, crop = model.pretrained_cfg, model.pretrained_cfg["input_size"][-1]
        if (patches := preprocessing.sized_patches(model)) is not None:
            crop = patches.img_size[0]  # perhaps that of fine-tuned weights
        how = cfg["interpolation"] if cfg["interpolation"] in ("bilinear", "bicubic") else "bicubic"
        found = Preprocessing(tuple(cfg["mean"]), tuple(cfg["std"]), math.floor(crop / cfg["crop_pct"]), crop, how)
    elif host == "open_clip":
        found = _clip_models().clip_preprocessing(model)
    elif host == "dino":
        found = Preprocessing(interpolation="bicubic").resized(model.patch_embed.img_size[0])
    elif host == "hf":
        found = hf_models.hf_preprocessing(name, model)
    elif host == "torchvision":
        found = found.resized(getattr(model, "image_size", None))
    elif host == "config" and (own := _instantiated(name, opts, "dataloader.test.dataset.transform")) is not None:
        try:
            found = Preprocessing(tuple(own.mean), tuple(own.std), own.resize, own.crop, own.interpolation)
        except AttributeError as error:
            raise ValueError(
                f"{name}: dataloader.test.dataset.transform must be an EvalTransform (last_vit.data.transforms), which "
                f"tells its resize, crop, mean and std; got {type(own).__name__}"
            ) from error
    return found.resized(image_size, resize)


def _clip_models() -> Any:
    """open_clip's side, which takes seconds to import, for its own models."""
    from last_vit import clip_models

    return clip_models


def _parse(spec: str) -> tuple[str, str]:
    """Spec -> one of `_HOSTS` or "config", and the rest."""
    host, _, name = spec.partition(":")
    if host in _HOSTS and name:
        return host, name
    if spec.endswith(".py"):
        return "config", spec
    libraries = {"torchvision": torchvision_models, "timm": timm}
    meant = [f"{host}:{spec}" for host, each in libraries.items() if spec.partition(".")[0] in each.list_models()]
    raise ValueError(
        f"a model is given as {MODEL_FORMS}, got {spec!r}{'; did you mean ' if meant else ''}{' or '.join(meant)}"
    )


def _instantiated(path: str, opts: Sequence[str], key: str) -> Any:
    """What a node of a LazyConfig describes; None where there is no such node, but for the model."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no config file at {path!r}; a model is given as {MODEL_FORMS}")
    try:
        from detectron2.config import instantiate
        from omegaconf import OmegaConf

        from last_vit.lazy_config import apply_overrides, load_file
    except ImportError as error:
        raise ImportError(f"{path} is for detectron2: install it with tools/install_detectron2.sh") from error
    cfg = load_file(path)
    if "model" not in cfg:
        raise ValueError(f"{path} defines no 'model'; it defines {', '.join(map(str, cfg))}")
    node = OmegaConf.select(apply_overrides(cfg, opts), key)
    return None if node is None else instantiate(node)
