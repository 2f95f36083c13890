"""One adapter per host library; `find_adapter` picks it by the names of the model's classes, importing no host."""

from torch import nn

from last_vit.adapters.base import Adapter, DenseOutput, unwrap_host
from last_vit.adapters.convnet import ConvNetAdapter
from last_vit.adapters.hub_vit import HubAdapter
from last_vit.adapters.open_clip_vit import OpenAIClipAdapter, OpenClipAdapter
from last_vit.adapters.timm_vit import TimmViTAdapter
from last_vit.adapters.torchvision_vit import TorchvisionViTAdapter

ADAPTERS: tuple[Adapter, ...] = (
    TorchvisionViTAdapter(),
    TimmViTAdapter(),
    OpenClipAdapter(),
    HubAdapter(),
    OpenAIClipAdapter(),
    ConvNetAdapter(),
)

_WHY_NOT = {  # by the beginnings of their modules' names
    ("swin", "hiera"): "merges its patches from stage to stage, so no grid of tokens is left to choose from",
    ("cait", "xcit"): "reads its patches with class-attention layers, which are a learned pool",
}

__all__ = ["ADAPTERS", "Adapter", "DenseOutput", "find_adapter", "unwrap_host"]


def find_adapter(model: nn.Module) -> Adapter:
    """The adapter for a host, bare or inside torch.compile, DDP or our wrappers; its methods take `unwrap_host(model)`.

    ValueError: No adapter knows the class; the message lists the supported hosts.
    """
    host = unwrap_host(model)
    for adapter in ADAPTERS:
        if adapter.matches(host):
            return adapter
    module = type(host).__module__.rpartition(".")[2].removeprefix("modeling_")
    reason = next((f", which {why}" for names, why in _WHY_NOT.items() if module.startswith(names)), "")
    supported = "".join(f"\n  - {adapter.hosts}" for adapter in ADAPTERS)
    raise ValueError(
        f"no adapter for {type(host).__module__}.{type(host).__qualname__}{reason}; supported hosts:{supported}\n"
        f"For your own ViT, call last_vit.last_pool on its patch tokens where it reads the class token."
    )
