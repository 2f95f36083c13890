"""Class embeddings on disk, found by what made them: the text tower and the tokens, not the names of files.

A key digests everything that decides the embeddings: the text tower's weights and buffers bit by bit with their dtypes,
its modules with their settings (heads, activation, pooling), the tokens of every prompt, and open_clip's version. What
it leaves out is noise: device, batch size. A file that is not exactly what was written, or was written for another key,
is not used.
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from last_vit.adapters.base import class_names
from last_vit.atomic_file import atomic_file
from last_vit.runtime import get_logger

_FORMAT = "1"  # of the files and of the arithmetic in clip_text.py: a new number makes all embeddings anew
_IMAGE_SIDE = ("visual.", "logit_scale", "logit_bias")


def embedding_key(model: nn.Module, tokens: Tensor, num_templates: int) -> str:
    """Digest of all that decides the embeddings of one set of prompts.

    Args:
        model: open_clip `CLIP` or `CustomTextCLIP`; its image tower does not count.
        tokens: int [names * templates, context], name by name.
        num_templates: Prompts per name.

    Returns:
        64 hex digits.
    """
    import open_clip

    digest = hashlib.sha256()

    def add(*parts: object) -> None:
        digest.update(repr(parts).encode())

    add(_FORMAT, open_clip.__version__, num_templates)
    for name, module in model.named_modules():
        if not f"{name}.".startswith("visual."):
            settings = {key: value for key, value in vars(module).items() if _is_setting(key, value)}
            add(name, class_names(module)[0], sorted(settings.items()))
    for name, tensor in (*model.named_parameters(), *model.named_buffers(), ("tokens", tokens)):
        if not name.startswith(_IMAGE_SIDE):
            plain = tensor.detach().cpu().contiguous()
            add(name, plain.dtype, tuple(plain.shape))
            digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class ClassEmbeddingCache:
    """The file of one key in a folder of class embeddings.

    Args:
        folder: Made when first written to.
        key: From `embedding_key`.

    Attributes:
        path: `<folder>/<first 32 digits of the key>.safetensors`; may not exist.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.key = key
        self.path = Path(folder).expanduser() / f"{key[:32]}.safetensors"

    def read(self, num_names: int) -> Tensor | None:
        """float32 [num_names, E] as they were written; None when there is no sound file (an unsound one is named)."""
        from safetensors import SafetensorError, safe_open

        if not self.path.is_file():
            return None
        try:
            with safe_open(str(self.path), framework="pt") as file:
                written = file.metadata() or {}
                embeddings = file.get_tensor("embeddings")
        except (SafetensorError, OSError) as error:
            return self._refuse(str(error))
        if written.get("key") != self.key or written.get("sha256") != _sha256(embeddings):
            return self._refuse("its content is not what was written for this text tower and these prompts")
        if embeddings.dtype != torch.float32 or embeddings.ndim != 2 or len(embeddings) != num_names:
            return self._refuse(f"it holds {embeddings.dtype} {tuple(embeddings.shape)} for {num_names} names")
        return embeddings

    def write(self, embeddings: Tensor) -> None:
        """Write [C, E] under the key, whole or not at all; a folder that cannot be written to is a warning."""
        from safetensors.torch import save

        content = save({"embeddings": embeddings}, {"key": self.key, "sha256": _sha256(embeddings)})
        try:
            with atomic_file(self.path) as file:
                file.write(content)
        except OSError as error:
            get_logger().warning(f"class embeddings are not kept in {self.path.parent}: {error}")

    def _refuse(self, reason: str) -> None:
        get_logger().warning(f"class embeddings in {self.path} are made anew: {reason}")


def _is_setting(key: str, value: object) -> bool:
    """Whether a module's attribute is a plain value that its forward may depend on."""
    if key.startswith("_") or key in ("training", "output_dict"):
        return False
    return value is None or isinstance(value, bool | int | float | str | tuple)


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()
