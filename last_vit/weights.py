"""What is known of trained weights: how they are pooled; the release's files and where they come from."""

from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from torch import hub, nn
from tqdm import tqdm

from last_vit.atomic_file import atomic_file
from last_vit.checkpoint import Checkpoint, file_sha256, read_weights
from last_vit.dense import attach_pool, pooling_of
from last_vit.pooling import LaStPool
from last_vit.preprocessing import Preprocessing

_OPENAI_MEAN, _OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class TrainedModel:
    """A model ready to be measured."""

    model: nn.Module  # in eval mode, with its pooling attached
    preprocessing: Preprocessing  # of the images it takes
    pooling: dict[str, Any]  # as `pooling_of` reports it
    pooling_source: str  # why it is pooled so, in words
    checkpoint_sha256: str | None  # first 16 hex digits; None for random weights
    num_classes: int | None = None  # size of the classifier in the weights; None when they hold none

    def selection(self, top_k: int | float | None = None, variant: str | None = None) -> LaStPool:
        """LaSt's selection for votes and for the token "last": as trained, or K = 1 as released."""
        return LaStPool(
            top_k if top_k is not None else self.pooling.get("top_k") or 1,
            sigma=self.pooling.get("sigma"),
            variant=variant or self.pooling.get("variant") or "release",
        )


def attach_trained_pooling(
    model: nn.Module,
    checkpoint: Checkpoint | None,
    pool: str | None = None,
    top_k: int | float | None = None,
    variant: str | None = None,
    from_config: bool = False,
) -> str:
    """Attach the pooling that the arguments, the checkpoint or its layout ask for.

    Without `pool`: what the checkpoint records; else what a config's model sets; else, for files in the released
    trainer's layout, LaSt with K = 1 as released; else the host's own read-out (CLS for a plain ViT).

    The model is changed in place; `checkpoint` is where its weights are from, `from_config` whether its pooling now was
    set by a config. `top_k` and `variant` are for "last", in place of the recorded ones (1 and "release" when nothing
    is recorded). Returns the reason in words; ValueError for `top_k` or `variant` without pool "last", and a config and
    a record that contradict each other.
    """
    recorded = dict(checkpoint.pooling or {}) if checkpoint else {}
    configured = pooling_of(model) if from_config else {"pool": "host"}
    if pool is None and recorded.get("pool") == "host" and configured["pool"] != "host":
        raise ValueError(
            f"the checkpoint records the host's own read-out, but the config pools with {configured['pool']!r}; "
            "override it (model.pool=host), or name the pool that you want"
        )
    is_release = checkpoint is not None and checkpoint.layout == "model" and checkpoint.iteration is not None
    if pool is not None:
        kind, source = pool, "asked for"
    elif recorded.get("pool", "host") != "host":
        kind, source = recorded["pool"], checkpoint.pooling_source
    elif configured["pool"] != "host":
        recorded = configured
        kind, source = recorded["pool"], "set by the config; the checkpoint records none"
    elif recorded:
        kind, source = None, f"the host's own read-out, {checkpoint.pooling_source}"
    elif is_release:
        kind, source = "last", "assumed: the released trainer's layout, which records no pooling"
    else:
        kind, source = None, "the host's own read-out; the checkpoint records none"
    if kind != "last" and (top_k is not None or variant is not None):
        raise ValueError(f"top_k and variant are for pool 'last', and this model's pooling is {kind or 'host'!r}")
    if kind == "last":
        own = recorded if recorded.get("pool") == "last" else {"top_k": 1}
        top_k = own["top_k"] if top_k is None else top_k
        attach_pool(model, "last", top_k, own.get("sigma"), variant or own.get("variant") or "release")
    elif kind is not None:
        attach_pool(model, kind)
    return source


@dataclass(frozen=True)
class WeightsRecord:
    """A file of LaSt-ViT's release, and how to load it; docs/hosts.md says what is published of it and what is not."""

    file: str  # name of the release asset
    source: str  # URL, where it is published
    architecture: str | None  # model spec as `--model` takes it; None: the file tells
    pooling: dict[str, Any]  # arguments of `attach_pool`; "top_k" is None where it is not published
    preprocessing: Preprocessing  # for evaluation

    @property
    def pooling_words(self) -> str:
        """Why a model of this file is pooled as it is."""
        return "published" if self.pooling["top_k"] else "LaSt as published; its K is not: 1, as in the released code"


def find_released(
    name: str,
    file: str | Path | None = None,
    pool: str | None = None,
    top_k: int | float | None = None,
    random_seed: int | None = None,
) -> tuple[WeightsRecord, dict[str, Any]]:
    """A released model by its name in `WEIGHTS`: its record, and spec, checkpoint, pool and top_k to load it with.

    Without `file` it is that in torch.hub's cache (TORCH_HOME), downloaded when it is not there. The SHA-256 of the
    first download stands beside it, and the file has it ever after.
    ValueError: Unknown name; random weights; a file in the cache that is no longer what was downloaded.
    FileNotFoundError: Nothing to download it from, such as no network. OSError: No room for it. Nothing half-written
    stays.
    """
    if name not in WEIGHTS or random_seed is not None:
        raise ValueError(f"the released models are {', '.join(WEIGHTS)}, with their own weights; got {name!r}")
    record = WEIGHTS[name]
    path = Path(hub.get_dir()) / "checkpoints" / record.file if file is None else Path(file)
    if file is None:
        _fetch(record.source, path, name)
    spec = record.architecture
    if spec is None:
        width = getattr(read_weights(path).weights.get("cls_token"), "shape", (0,))[-1]
        spec = {384: "dino:vit_small/16", 768: "dino:vit_base/16"}.get(width)
    if spec is None:
        raise ValueError(f"{path} is not {record.file}: no cls_token of 384 (ViT-S) or 768 (ViT-B) channels")
    pool = pool or record.pooling["pool"]
    top_k = top_k or record.pooling["top_k"] or 1 if pool == "last" else top_k
    return record, {"spec": spec, "checkpoint": path, "pool": pool, "top_k": top_k}


def _fetch(url: str, path: Path, name: str) -> None:
    """See that the file is there, and what it was when it was downloaded."""
    beside = path.with_name(f"{path.name}.sha256")
    if path.is_file() and beside.is_file():
        found, first = file_sha256(path), beside.read_text().strip()
        if found != first:
            raise ValueError(f"{path} has SHA-256 {found}, but had {first} when it came: delete it to download it anew")
        return
    try:
        if not path.is_file():
            _download(url, path)
        with atomic_file(beside) as file:  # also of a file that was put there by hand
            file.write(f"{file_sha256(path)}\n".encode())
    except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
        raise FileNotFoundError(
            f"{url} cannot be downloaded ({error}): fetch it where there is a network and give the file, "
            f"last_vit.load({name!r}, file=...) or last_vit:{name}@<file>"
        ) from error
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot keep {url} as {path} ({error.strerror}): make room, or set TORCH_HOME to another place",
        ) from error


def _download(url: str, path: Path) -> None:
    """Fetch a file whole or not at all; where a connection breaks, the next one goes on with the same version of it."""
    done, version = 0, None
    with atomic_file(path) as file, tqdm(desc=path.name, unit="B", unit_scale=True, disable=None) as bar:
        for tries_left in reversed(range(_TRIES)):
            headers = {"Range": f"bytes={done}-", "If-Range": version} if done and version else {}
            try:
                with urlopen(Request(url, headers=headers), timeout=_TIMEOUT) as response:  # noqa: S310 (as published)
                    if response.status != 206:
                        done = file.seek(0)  # the server sends it from the start
                        file.truncate()
                        version = response.headers["ETag"] or response.headers["Last-Modified"]
                    length = response.headers["Content-Length"]
                    bar.total = done + int(length) if length else None
                    while block := response.read(1 << 20):
                        done += file.write(block)
                        bar.update(done - bar.n)
                if bar.total in (None, done):
                    return
            except (URLError, HTTPException, ConnectionError, TimeoutError):
                if not (done and tries_left):
                    raise
        raise ConnectionError(f"the connection broke {_TRIES} times, {done} of {bar.total} bytes came")


_TRIES, _TIMEOUT = 5, 60  # connections; seconds without a byte
_RELEASES = "https://github.com/ChengShiest/LAST-ViT/releases/download"
_LAST = {"pool": "last", "top_k": None, "sigma": None, "variant": "release"}

WEIGHTS: dict[str, WeightsRecord] = {
    "vitb16_in1k_last": WeightsRecord(
        "ViT_190k.pth",
        f"{_RELEASES}/weights2/ViT_190k.pth",
        "torchvision:vit_b_16",
        {**_LAST, "top_k": 1},
        Preprocessing(),
    ),
    "vit_dino_last": WeightsRecord(
        "dino0080.pth",
        f"{_RELEASES}/weights/dino0080.pth",
        None,
        _LAST,
        Preprocessing(interpolation="bicubic"),  # of DINO's k-NN evaluation
    ),
    "vitb16_clip_last": WeightsRecord(
        "openai_b_16.pt",
        f"{_RELEASES}/weights/openai_b_16.pt",
        "open_clip:ViT-B-16-quickgelu",
        _LAST,
        Preprocessing(_OPENAI_MEAN, _OPENAI_STD, 224, 224, "bicubic"),
    ),
}
