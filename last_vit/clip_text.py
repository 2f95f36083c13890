"""What a CLIP's text tower says about class names: one embedding per name, the mean over prompts, cached by content.

    embeddings = encode_class_names(model, tokenizer, names, read_templates("openai"), cache=default_cache())   # [C, E]

The mean is that of CLIP's zero-shot code: each prompt's embedding is normalised, then averaged, then normalised again.

Embeddings on disk are found by what made them, not by names of files: a key digests the text tower's weights and
buffers bit by bit with their dtypes, its modules with their settings (heads, activation, pooling), the tokens of every
prompt, and open_clip's version. What it leaves out is noise: device, batch size. A file that is not exactly what was
written, or was written for another key, is not used.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from last_vit.adapters.base import class_names
from last_vit.atomic_file import atomic_file
from last_vit.data.loaders import process_share
from last_vit.runtime import all_gather, all_reduce_sum, get_logger, is_main_process, progress, rank, world_size

TEMPLATE_SETS = ("openai", "simple")
_FORMAT = "1"  # of files and of the arithmetic here: a new number makes all embeddings anew
_IMAGE_SIDE = ("visual.", "logit_scale", "logit_bias")


def read_templates(source: str | Path = "openai") -> tuple[str, ...]:
    """Prompt templates, each with one {} for the class name.

    `source` is "openai" (the 80 of CLIP's ImageNet numbers) or "simple" (7 of them), both as open_clip has them; a
    template itself, such as "a photo of a {}" or "{}"; or a file with one template per line.
    """
    if str(source) in TEMPLATE_SETS:
        whole = str(source) == "openai"
        functions = open_clip.OPENAI_IMAGENET_TEMPLATES if whole else open_clip.SIMPLE_IMAGENET_TEMPLATES
        return tuple(template("{}") for template in functions)
    if "{" in str(source):
        templates = [str(source)]
    elif Path(source).is_file():
        text = Path(source).read_text(encoding="utf-8-sig")
        templates = [line.strip() for line in text.removesuffix("\n").split("\n")]
    else:
        raise FileNotFoundError(
            f"prompt templates are {', '.join(TEMPLATE_SETS)}, a template such as 'a photo of a {{}}', or a file with "
            f"one template per line; got {str(source)!r}"
        )
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"a template has exactly one {{}}, for the class name; got {template!r} from {source}")
        if templates.count(template) > 1:
            raise ValueError(f"template {template!r} stands twice in {source}")
    return tuple(templates)


def default_cache() -> Path:
    """Folder where commands keep class embeddings: `last_vit/class_embeddings` in XDG_CACHE_HOME or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "last_vit" / "class_embeddings"


def encode_class_names(
    model: nn.Module,
    tokenizer: Callable[[list[str]], Tensor],
    names: Sequence[str],
    templates: Sequence[str],
    batch_size: int = 256,
    cache: Path | None = None,
) -> Tensor:
    """One text embedding per name: each prompt encoded and normalised, their mean normalised.

    Runs in the precision of the model's weights, autocast off; what follows the tower is float32. Under torchrun the
    processes share the names, so all of them must call this together. With `cache`, embeddings that were made before
    by the same text tower from the same tokens are read from that folder instead. `names` are C, synonyms one by one,
    and `batch_size` counts prompts: float32 [C, E] of length 1, on the CPU. ValueError for a model in training mode, a
    prompt that the tokenizer would cut off, and embeddings that are not finite.
    """
    if not names or not templates or batch_size < 1:
        raise ValueError(
            f"needs names, templates and a positive batch size, got {len(names)}, {len(templates)} and {batch_size}"
        )
    if model.training:
        raise ValueError("class names are encoded in eval mode, for dropout would change them; call model.eval()")
    tokens = _tokenize(tokenizer, [template.replace("{}", name) for name in names for template in templates])
    if cache is None:
        return _encode(model, tokens, len(names), batch_size)
    key = embedding_key(model, tokens, len(templates))
    path = Path(cache).expanduser() / f"{key[:32]}.safetensors"
    found = _read_embeddings(path, key, len(names))
    num_found = int(all_reduce_sum(torch.tensor(int(found is not None))))
    if num_found == world_size():
        return found
    embeddings = _encode(model, tokens, len(names), batch_size)
    if is_main_process():
        content = save({"embeddings": embeddings}, {"key": key, "sha256": _sha256(embeddings)})
        try:
            with atomic_file(path) as file:
                file.write(content)
        except OSError as error:
            get_logger().warning(f"class embeddings are not kept in {path.parent}: {error}")
    return embeddings


def embedding_key(model: nn.Module, tokens: Tensor, num_templates: int) -> str:
    """Digest of all that decides the embeddings of one set of prompts, 64 hex digits.

    The image tower does not count; tokens are int [names * templates, context], name by name.
    """
    digest = hashlib.sha256(repr((_FORMAT, open_clip.__version__, num_templates)).encode())
    for name, module in model.named_modules():
        if not f"{name}.".startswith("visual."):
            settings = {key: value for key, value in vars(module).items() if _is_setting(key, value)}
            digest.update(repr((name, class_names(module)[0], sorted(settings.items()))).encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers(), ("tokens", tokens)):
        if not name.startswith(_IMAGE_SIDE):
            digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
            digest.update(_bytes(tensor))
    return digest.hexdigest()


def _tokenize(tokenizer: Callable[[list[str]], Tensor], prompts: list[str]) -> Tensor:
    """Tokens [prompts, context]; refuses prompts that do not fit, where the tokenizer can tell (open_clip's own)."""
    tokens = tokenizer(prompts)
    context = tokens.shape[1]
    if hasattr(tokenizer, "encode") and getattr(tokenizer, "reduction_fn", None) is None:
        for index in tokens[:, -1].nonzero().flatten().tolist():  # rows without padding: just full, or cut
            length = len(tokenizer.encode(prompts[index])) + 2  # start and end
            if length > context:
                raise ValueError(
                    f"the prompt {prompts[index]!r} has {length} tokens, this text tower reads {context}: its end "
                    "would be cut off; shorten the class name or the template"
                )
    return tokens


def _encode(model: nn.Module, tokens: Tensor, num_names: int, batch_size: int) -> Tensor:
    """Tokens [C * T, context], name by name -> [C, E]; each process encodes its share of the names."""
    device = next(model.parameters()).device
    by_name = tokens.view(num_names, -1, tokens.shape[1])
    share = process_share(num_names, rank())
    step = max(1, batch_size // by_name.shape[1])
    starts = progress(range(share.start, share.stop, step), "encoding class names")
    rows = []
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        for start in starts:
            part = by_name[start : min(start + step, share.stop)]
            encoded = [
                F.normalize(model.encode_text(prompts.to(device)).float(), dim=-1)
                for prompts in part.flatten(0, 1).split(batch_size)
            ]
            rows.append(F.normalize(torch.cat(encoded).view(*part.shape[:2], -1).mean(dim=1), dim=-1).cpu())
    own = torch.cat(rows) if rows else torch.empty(0, 0)  # more processes than names
    size = max(int(each) for each in all_gather(torch.tensor(own.shape[1])))
    embeddings = torch.zeros(num_names, size)
    if rows:
        embeddings[share.start : share.stop] = own
    embeddings = all_reduce_sum(embeddings)
    if not embeddings.isfinite().all():
        raise ValueError("the text tower gave embeddings that are not finite; check its weights and precision")
    return embeddings


def _read_embeddings(path: Path, key: str, num_names: int) -> Tensor | None:
    """float32 [num_names, E] as they were written; None when there is no sound file (an unsound one is named)."""
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            written = file.metadata() or {}
            embeddings = file.get_tensor("embeddings")
        if written.get("key") != key or written.get("sha256") != _sha256(embeddings):
            raise ValueError("its content is not what was written for this text tower and these prompts")
        if embeddings.dtype != torch.float32 or embeddings.ndim != 2 or len(embeddings) != num_names:
            raise ValueError(f"it holds {embeddings.dtype} {tuple(embeddings.shape)} for {num_names} names")
    except (SafetensorError, OSError, ValueError) as error:
        get_logger().warning(f"class embeddings in {path} are made anew: {error}")
        return None
    return embeddings


def _is_setting(key: str, value: object) -> bool:
    """Whether a module's attribute is a plain value that its forward may depend on."""
    if key.startswith("_") or key in ("training", "output_dict"):
        return False
    return value is None or isinstance(value, bool | int | float | str | tuple)


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(_bytes(tensor)).hexdigest()
