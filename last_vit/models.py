"""One text per model for every command that takes several: what it is called, what it is, where its weights are.

    [NAME=]SPEC[@CHECKPOINT][,pool=KIND][,top_k=K][,variant=release|paper][,seed=S]

    timm:vit_small_patch16_224.dino@dino_deitsmall16_pretrain.pth
    "LaSt K=1=cls_pretrain/conf.py@ViT_190k.pth,top_k=1"
    open_clip:ViT-B-16-quickgelu@ViT-B-16.pt
    "LaSt=dino:vit_small/16@output/dino/checkpoint.pth"
    control=torchvision:resnet50@random

SPEC is that of model_spec.py. CHECKPOINT is a local file in any layout that checkpoint.py reads, or the word `random`
for random weights as a control, drawn with `seed` (0). `pool`, `top_k` and `variant` stand in place of what the
checkpoint records, as in `load_trained_model`, which does the loading.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from last_vit.model_spec import FORMS, build_model, preprocessing_of
from last_vit.names import POOLS
from last_vit.native_size import find_patch_size, takes_any_size
from last_vit.trained_model import TrainedModel, load_trained_model
from last_vit.trained_pooling import attach_trained_pooling

__all__ = [
    "ModelArgument",
    "TrainedModel",
    "attach_trained_pooling",
    "build_model",
    "find_patch_size",
    "load_trained_model",
    "parse_model_argument",
    "parse_model_arguments",
    "preprocessing_of",
    "takes_any_size",
]

GRAMMAR = "[NAME=]SPEC[@CHECKPOINT][,pool=KIND][,top_k=K][,variant=release|paper][,seed=S]"
_RANDOM = "random"
_OPTIONS = ("pool", "top_k", "variant", "seed")
# A name may hold "=" ("LaSt K=1"): it is everything before the "=" behind which a spec begins.
_NAMED = re.compile(r"(?P<name>.*)=(?P<rest>(?:torchvision|timm|open_clip|dino):.*|[^=]*\.py(?:[@,].*)?)", re.DOTALL)


@dataclass(frozen=True)
class ModelArgument:
    """A parsed model text.

    Attributes:
        name: What tables and pictures call the model.
        spec: As in `build_model`.
        checkpoint: File of the weights; None for random weights and where the spec names the file.
        seed: Of random weights; None with real ones.
        pool, top_k, variant: As in `load_trained_model`; None is what the checkpoint records.
    """

    name: str
    spec: str
    checkpoint: str | None = None
    seed: int | None = None
    pool: str | None = None
    top_k: int | float | None = None
    variant: str | None = None

    def load(self, image_size: int | None = None, resize: int | None = None) -> TrainedModel:
        """Build the model and load its weights.

        Args:
            image_size: As in `load_trained_model`.
            resize: As in `load_trained_model`.

        Raises:
            ValueError, FileNotFoundError: As `load_trained_model`; the message names the model.
        """
        try:
            return load_trained_model(
                self.spec,
                self.checkpoint,
                image_size=image_size,
                resize=resize,
                pool=self.pool,
                top_k=self.top_k,
                variant=self.variant,
                random_seed=self.seed,
            )
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"model {self.name!r}: {error}") from error


def parse_model_argument(text: str) -> ModelArgument:
    """Read one model text; checks its form, opens no file.

    Args:
        text: In the form of `GRAMMAR`.

    Returns:
        Its parts. Without NAME the model is called after its checkpoint's folder and file, or after its spec.

    Raises:
        ValueError: Not that form, an unknown option, or a value outside its range.

    Example:
        >>> parse_model_argument("LaSt K=1=timm:vit_tiny_patch16_224@run/last.pth,top_k=1").name
        'LaSt K=1'
        >>> parse_model_argument("torchvision:resnet50@random").seed
        0
    """
    named = _NAMED.fullmatch(text)
    name, rest = (named["name"].strip(), named["rest"]) if named else ("", text)
    rest, options = _split_options(rest, text)
    spec, has_checkpoint, checkpoint = rest.partition("@")
    if not spec or (has_checkpoint and not checkpoint):
        raise ValueError(f"a model is given as {GRAMMAR} with SPEC {FORMS}, got {text!r}")
    is_random = checkpoint == _RANDOM
    if "seed" in options and not is_random:
        raise ValueError(f"seed is for random weights, @{_RANDOM}, got {text!r}")
    return ModelArgument(
        name=name or _default_name(spec, checkpoint, is_random),
        spec=spec,
        checkpoint=None if is_random or not checkpoint else checkpoint,
        seed=_whole_number("seed", options.get("seed", "0"), text) if is_random else None,
        pool=options.get("pool"),
        top_k=_top_k(options["top_k"], text) if "top_k" in options else None,
        variant=options.get("variant"),
    )


def parse_model_arguments(texts: list[str]) -> list[ModelArgument]:
    """Read the model texts of one command, whose names must differ, for they label its rows and pictures.

    Raises:
        ValueError: As `parse_model_argument`, or a name that stands twice.
    """
    arguments = [parse_model_argument(text) for text in texts]
    names = [argument.name for argument in arguments]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two models are called {name!r}; give them names: --model 'A=...' --model 'B=...'")
    return arguments


def _split_options(rest: str, text: str) -> tuple[str, dict[str, str]]:
    """`SPEC@CHECKPOINT,key=value,...` -> the part before the options, and the options."""
    options: dict[str, str] = {}
    while True:
        found = re.fullmatch(r"(.*),(\w+)=([^,@/]*)", rest, re.DOTALL)
        if found is None:
            break
        rest, key, value = found.groups()
        if key not in _OPTIONS:
            raise ValueError(f"unknown option {key!r} in model {text!r}; known: {', '.join(_OPTIONS)}")
        if key in options:
            raise ValueError(f"option {key!r} stands twice in model {text!r}")
        options[key] = value
    if "pool" in options and options["pool"] not in POOLS:
        raise ValueError(f"pool must be one of {', '.join(POOLS)}, got {options['pool']!r} in model {text!r}")
    return rest, options


def _default_name(spec: str, checkpoint: str, is_random: bool) -> str:
    if is_random:
        return f"{spec.partition(':')[2] or Path(spec).stem}, random"
    if not checkpoint:
        return spec
    path = Path(checkpoint)
    return "/".join((*path.parent.parts[-1:], path.stem))


def _top_k(value: str, text: str) -> int | float:
    try:
        return float(value) if "." in value else int(value)
    except ValueError as error:
        raise ValueError(f"top_k must be a number of patches or a share such as 0.5, got {text!r}") from error


def _whole_number(key: str, value: str, text: str) -> int:
    if not value.isdecimal():
        raise ValueError(f"{key} must be a whole number, got {value!r} in model {text!r}")
    return int(value)
