"""Text embeddings of class names: the classifier of an open-vocabulary detector, made, stored and read safely.

Own files are safetensors: the vectors, and as metadata the names, the text tower and the prompts. Two published kinds
are read too: the F-ViT release's `.pt` dictionaries (name -> vector, "background" last) and Detic's `.npy` matrices,
which know neither names nor tower. No file can run code: .pt is read with torch's weights_only, .npy without pickle.

Letters: C classes, E numbers per embedding.
"""

import difflib
import json
import math
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from class_prompts import BACKGROUND, group_by_templates, readable_name
from ov_classes import read_ov_classes
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from last_vit.atomic_file import atomic_file
from last_vit.checkpoint import read_checkpoint, shorten
from last_vit.clip_models import load_clip
from last_vit.clip_text import default_cache, encode_class_names
from last_vit.data.coco import read_coco_json
from last_vit.runtime import select_device

_FORMAT = "class_embeddings.1"
_UNKNOWN = "unknown"
_BUILDER = "ov_detection/build_class_embeddings.py"


@dataclass(frozen=True, eq=False)
class ClassEmbeddings:
    """One vector per class, as a text tower gives them.

    ValueError: No class, two of one name, shapes that disagree, a vector that is not finite or zero.
    """

    names: tuple[str, ...]  # C, no two the same
    embeddings: Tensor  # float32 [C, E]; given at any length, kept L2-normalised
    background: Tensor | None  # float32 [E], likewise; None where the source has none
    tower: str  # in words, "unknown" where the source does not say
    prompts: str  # likewise

    def __post_init__(self) -> None:
        check_vocabulary(self.names)
        if self.embeddings.ndim != 2 or len(self.embeddings) != len(self.names):
            raise ValueError(
                f"{len(self.names)} classes need embeddings [{len(self.names)}, E], got {list(self.embeddings.shape)}"
            )
        names, rows = list(self.names), self.embeddings.float()
        if self.background is not None:
            if self.background.shape != rows.shape[1:]:
                raise ValueError(
                    f"the background's embedding must be [{self.width}], got {list(self.background.shape)}"
                )
            names, rows = [*names, BACKGROUND], torch.cat([rows, self.background.float()[None]])
        bad = [name for name, norm in zip(names, rows.norm(dim=1).tolist(), strict=True) if not 0 < norm < math.inf]
        if bad:
            raise ValueError(f"embeddings that are zero or not finite: {shorten(bad)}; make the file again")
        rows = F.normalize(rows, dim=-1)
        object.__setattr__(self, "embeddings", rows[: len(self.names)])
        if self.background is not None:
            object.__setattr__(self, "background", rows[-1])

    def __len__(self) -> int:
        return len(self.names)

    @property
    def width(self) -> int:
        """E."""
        return self.embeddings.shape[1]

    def select(self, names: Sequence[str]) -> "ClassEmbeddings":
        """These classes in this order; a name that is not there, or twice in the list, is a ValueError."""
        check_vocabulary(names)
        place_of = {name: place for place, name in enumerate(self.names)}
        missing = [name for name in names if name not in place_of]
        if missing:
            near = difflib.get_close_matches(missing[0], self.names, n=1)
            raise ValueError(
                f"{len(missing)} of {len(names)} classes have no embedding: {shorten(missing)}"
                f"{f' (nearest to the first: {near[0]!r})' if near else ''}; build one for each with {_BUILDER}"
            )
        return replace(self, names=tuple(names), embeddings=self.embeddings[[place_of[name] for name in names]])


def check_vocabulary(names: Sequence[str]) -> None:
    """Refuse class names that no classifier can be made of: none, an empty one, or one that stands twice."""
    if not names:
        raise ValueError("the vocabulary is empty: name at least one class")
    blank = [place for place, name in enumerate(names) if not readable_name(name).strip()]
    if blank:
        raise ValueError(f"the vocabulary's name {blank[0] + 1} of {len(names)} is empty")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"the vocabulary names classes more than once: {shorten(twice)}; name each once")


def split_names(text: str) -> list[str]:
    """The names of --vocabulary, which commas separate; checked as `check_vocabulary` does."""
    names = [name.strip() for name in text.split(",")] if text.strip() else []
    check_vocabulary(names)
    return names


def embed_class_names(
    model: nn.Module,
    tokenizer: Callable[..., Tensor],
    names: Sequence[str],
    tower: str,
    prompts: str = "vild",
    batch_size: int = 256,
    cache: Path | None = None,
) -> ClassEmbeddings:
    """Embed class names, as the data set spells them, and "background" with the text tower of a CLIP in eval mode.

    `tower` is what it is called, for the record. `prompts` is "vild" (mean over 63 templates) or "a" ("a {name}"),
    `batch_size` of which are encoded at a time.
    `cache` is as in `encode_class_names`.
    """
    check_vocabulary(names)
    every = [*names, BACKGROUND]
    rows: dict[int, Tensor] = {}
    for templates, places in group_by_templates(every, prompts).items():
        texts = [readable_name(every[place]) for place in places]
        vectors = encode_class_names(model, tokenizer, texts, templates, batch_size, cache)
        rows.update(zip(places, vectors, strict=True))
    ordered = torch.stack([rows[place] for place in range(len(every))])
    return ClassEmbeddings(tuple(names), ordered[:-1], ordered[-1], tower, prompts)


def save_class_embeddings(path: str | Path, embeddings: ClassEmbeddings) -> None:
    """Write a `.safetensors` file, whole or not at all; another ending is a ValueError."""
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"class embeddings are written as .safetensors, got {path}")
    tensors = {"embeddings": embeddings.embeddings.contiguous()}
    if embeddings.background is not None:
        tensors["background"] = embeddings.background.contiguous()
    names = json.dumps(embeddings.names)
    metadata = {"format": _FORMAT, "names": names, "tower": embeddings.tower, "prompts": embeddings.prompts}
    with atomic_file(path) as file:
        file.write(save(tensors, metadata))


def load_class_embeddings(path: str | Path, names: Sequence[str] | None = None) -> ClassEmbeddings:
    """Read own `.safetensors`, F-ViT's `.pt` dictionary or Detic's `.npy` matrix.

    `names` are the classes wanted, in this order; None for all of the file, in its order. A `.npy` file has no names:
    they must be given, one per row in the rows' order (ascending category id). ValueError for another kind of file, a
    damaged one, classes that it lacks, and names that do not fit it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no class embeddings at {path}: {_BUILDER} makes them")
    try:
        if path.suffix == ".npy":
            return _of_matrix(path, names)
        content = read_checkpoint(path)
        found = _of_own_file(path, content) if path.suffix == ".safetensors" else _of_dictionary(content)
        return found if names is None else found.select(names)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _of_matrix(path: Path, names: Sequence[str] | None) -> ClassEmbeddings:
    try:
        matrix = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"not a .npy matrix of numbers ({error})") from error
    if matrix.ndim != 2 or matrix.dtype.kind != "f":
        raise ValueError(f"expected a matrix of floats [classes, E], got {matrix.dtype} {list(matrix.shape)}")
    if names is None:
        raise ValueError("a .npy matrix has no class names: give one per row, in the rows' order")
    if len(names) != len(matrix):
        raise ValueError(f"{len(matrix)} rows for {len(names)} classes: a .npy matrix must have one row per class")
    return ClassEmbeddings(tuple(names), torch.from_numpy(matrix.astype(np.float32)), None, _UNKNOWN, _UNKNOWN)


def _of_dictionary(content: dict[str, object]) -> ClassEmbeddings:
    shapes = {tuple(row.shape) if isinstance(row, Tensor) else type(row).__name__ for row in content.values()}
    if len(shapes) != 1 or not all(isinstance(shape, tuple) and len(shape) == 1 for shape in shapes):
        raise ValueError(
            f"expected a dictionary of class name -> vector, all of one width; got {sorted(map(str, shapes))}"
        )
    background = content.pop(BACKGROUND, None)
    check_vocabulary(list(content))
    return ClassEmbeddings(tuple(content), torch.stack(list(content.values())), background, _UNKNOWN, _UNKNOWN)


def _of_own_file(path: Path, content: dict[str, Tensor]) -> ClassEmbeddings:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if metadata.get("format") != _FORMAT or "embeddings" not in content:
        raise ValueError(f"a safetensors file without class names: expected one of {_BUILDER}")
    names = tuple(json.loads(metadata["names"]))
    background = content.get("background")
    return ClassEmbeddings(names, content["embeddings"], background, metadata["tower"], metadata["prompts"])


def build_file(args: Namespace) -> None:
    """Embed names with a tower, or read what others embedded; write the file and say what is in it."""
    names = _read_names(args)
    if args.convert is not None:
        if args.model or args.checkpoint:
            raise ValueError("--convert reads embeddings, --model and --checkpoint make them: give one or the other")
        found = load_class_embeddings(args.convert, names)
        found = replace(found, tower=args.tower or found.tower, prompts=args.prompts or found.prompts)
    elif args.model and args.checkpoint and names is not None:
        clip = load_clip(args.model, args.checkpoint, device=select_device(args.device))
        tower = args.tower or f"{clip.arch}, weights {clip.checkpoint_sha256}"
        prompts, cache = args.prompts or "vild", default_cache()
        found = embed_class_names(clip.model, clip.tokenizer, names, tower, prompts, args.batch_size, cache)
    else:
        raise ValueError(
            "give --model, --checkpoint and the names (--json, --names or --vocabulary), or --convert with a file of "
            "embeddings"
        )
    save_class_embeddings(args.output, found)
    background = "with" if found.background is not None else "without"
    print(
        f"written {args.output}: {len(found)} classes x {found.width}, {background} background; tower {found.tower}, "
        f"prompts {found.prompts}"
    )


def _read_names(args: Namespace) -> list[str] | None:
    """The class names that the flags give; None where none do."""
    if args.json is not None:
        try:
            return list(read_ov_classes(read_coco_json(args.json)["categories"], novel=()).names)
        except ValueError as error:
            raise ValueError(f"{args.json}: {error}") from error
    if args.names is not None:
        names = [line.strip() for line in args.names.read_text(encoding="utf-8-sig").splitlines()]
        check_vocabulary(names)
        return names
    return None if args.vocabulary is None else split_names(args.vocabulary)
