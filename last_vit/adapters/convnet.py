"""Pooling seam of ConvNets: global average pooling (GAP) of the last feature map (paper Eq. 3, its ConvNet baseline).

A feature map [B, D, h, w] is read as patch tokens [B, h * w, D]. Replacing GAP means handing it a 1 x 1 map that holds
the pooled token, of which the host's own average is that token: a pre-hook where GAP is a module, a hook on the last
feature module where GAP is a function. Layers between GAP and the classifier (ConvNeXt's norm, MobileNetV3's hidden
layer) see the pooled token as they saw GAP. VGG, AlexNet and SqueezeNet have no GAP: they can be read, not re-pooled.
"""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from last_vit.adapters.base import (
    Blocks,
    DenseOutput,
    PoolHook,
    check_class_token,
    check_global_token,
    class_names,
    first_output,
    install_hook,
    installed_pool,
)
from last_vit.token_pool import TokenPool


class _Seam(NamedTuple):
    path: str  # of the GAP module, or of the module whose output is the last feature map
    gap: str  # "module": `path` is GAP; "function": GAP follows `path`; "none": the host has no GAP
    relu: bool = False  # the host applies a functional ReLU between `path` and GAP


_TORCHVISION = {
    "resnet.ResNet": _Seam("avgpool", "module"),
    "efficientnet.EfficientNet": _Seam("avgpool", "module"),
    "mobilenetv3.MobileNetV3": _Seam("avgpool", "module"),
    "convnext.ConvNeXt": _Seam("avgpool", "module"),
    "regnet.RegNet": _Seam("avgpool", "module"),
    "googlenet.GoogLeNet": _Seam("avgpool", "module"),
    "inception.Inception3": _Seam("avgpool", "module"),
    "densenet.DenseNet": _Seam("features", "function", relu=True),
    "mobilenetv2.MobileNetV2": _Seam("features", "function"),
    "mnasnet.MNASNet": _Seam("layers", "function"),
    "shufflenetv2.ShuffleNetV2": _Seam("conv5", "function"),
    "alexnet.AlexNet": _Seam("features", "none"),
    "squeezenet.SqueezeNet": _Seam("features", "none"),
    "vgg.VGG": _Seam("features", "none"),
}
_TIMM_HEAD_POOL = [
    "byobnet.ByobNet", "convnext.ConvNeXt", "csatv2.CSATv2", "cspnet.CspNet", "cspnext.CspNext",
    "efficientvit_mit.EfficientVit", "efficientvit_mit.EfficientVitLarge", "focalnet.FocalNet",
    "hgnet.HighPerfGpuNet", "inception_next.MetaNeXt", "metaformer.MetaFormer", "nfnet.NormFreeNet", "rdnet.RDNet",
    "regnet.RegNet", "resnetv2.ResNetV2", "rexnet.RexNet", "tresnet.TResNet", "vovnet.VovNet",
    "xception_aligned.XceptionAligned",
]  # fmt: skip
_TIMM_POOL = [
    "convmixer.ConvMixer", "densenet.DenseNet", "dla.DLA", "dpn.DPN", "efficientnet.EfficientNet",
    "efficientvit_msra.EfficientVitMsra", "fasternet.FasterNet", "ghostnet.GhostNet", "hrnet.HighResolutionNet",
    "inception_resnet_v2.InceptionResnetV2", "inception_v3.InceptionV3", "inception_v4.InceptionV4",
    "lcnetv2.LCNetV2", "mobilenetv3.MobileNetV3", "nasnet.NASNetALarge", "pnasnet.PNASNet5Large",
    "repghost.RepGhostNet", "resnet.ResNet", "selecsls.SelecSls", "senet.SENet", "starnet.StarNet",
    "xception.Xception",
]  # fmt: skip
_SEAMS = {
    **{f"torchvision.models.{name}": seam for name, seam in _TORCHVISION.items()},
    **{f"timm.models.{name}": _Seam("head.global_pool", "module") for name in _TIMM_HEAD_POOL},
    **{f"timm.models.{name}": _Seam("global_pool", "module") for name in _TIMM_POOL},
    "timm.models.mambaout.MambaOut": _Seam("stages", "function"),
    "timm.models.repvit.RepVit": _Seam("stages", "function"),
    "timm.models.vgg.VGG": _Seam("features", "none"),
}


class ConvNetAdapter:
    """torchvision's and timm's ConvNets; no class token, global token = GAP of the last feature map."""

    hosts = "torchvision and timm ConvNets (ResNet, ConvNeXt, EfficientNet, MobileNet, RegNet, DenseNet, ...)"

    def matches(self, model: nn.Module) -> bool:
        return not _SEAMS.keys().isdisjoint(class_names(model))

    def attach(self, model: nn.Module, pool: TokenPool) -> None:
        """A ValueError for hosts without GAP and hosts whose GAP widens the token."""
        check_class_token(model, pool, has_class_token=False)
        seam = _seam(model)
        if seam.gap == "none":
            raise ValueError(
                f"{type(model).__name__} has no global average pooling to replace; dense_forward works on it as it is"
            )
        module = model.get_submodule(seam.path)
        if getattr(module, "pool_type", "avg") in ("", "catavgmax"):
            raise ValueError(
                f"this {type(model).__name__} pools with {module}, whose output is not one [B, D] token; build it "
                f"with global_pool='avg'"
            )
        install_hook(module, _PooledMap(pool, _is_nhwc(model), seam.relu), on_input=seam.gap == "module")

    def attached(self, model: nn.Module) -> TokenPool | None:
        return installed_pool(model.get_submodule(_seam(model).path))

    def dense(self, model: nn.Module, images: Tensor) -> DenseOutput:
        """Tokens are the cells of the map that GAP reads; there is no class token.

        For hosts without GAP (VGG, AlexNet, SqueezeNet) the global token is the mean over the map, which their
        classifier does not read.
        """
        seam, nhwc = _seam(model), _is_nhwc(model)
        module = model.get_submodule(seam.path)
        seen: dict[str, Tensor] = {}
        # `feature_map` is recorded in front of an attached pool, `pooled` behind it.
        if seam.gap == "module":
            first = module.register_forward_pre_hook(lambda _, args: seen.update(feature_map=args[0]), prepend=True)
        else:
            first = module.register_forward_hook(lambda _, args, out: seen.update(feature_map=out), prepend=True)
        with first, module.register_forward_hook(lambda _, args, out: seen.update(pooled=out)):
            logits = first_output(model(images))
        feature_map = seen["feature_map"]
        height, width = feature_map.shape[1:3] if nhwc else feature_map.shape[2:]
        patch_tokens = _to_tokens(feature_map, nhwc, seam.relu)
        if seam.gap == "module":
            global_token = seen["pooled"].flatten(1)
        else:
            global_token = _to_tokens(seen["pooled"], nhwc, seam.relu).mean(dim=1)
        check_global_token(model, global_token, patch_tokens.shape[2])
        return DenseOutput(global_token, patch_tokens, (height, width), logits, None)

    def blocks(self, model: nn.Module) -> Blocks:
        """There are none: the stages of a ConvNet have grids of their own."""
        return Blocks((), True, False)


class _PooledMap(PoolHook):
    """[B, D, h, w] feature map (or [B, h, w, D]) -> [B, D, 1, 1] (or [B, 1, 1, D]) holding the pooled token."""

    def __init__(self, pool: TokenPool, nhwc: bool, relu: bool) -> None:
        super().__init__(pool)
        self.nhwc = nhwc
        self.relu = relu

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor | None = None) -> Tensor:
        feature_map = args[0] if output is None else output
        pooled = self.pool(_to_tokens(feature_map, self.nhwc, self.relu), 0)
        if self.relu:
            pooled = pooled.clone()  # the host's ReLU writes in place, over what max pooling keeps for backward
        return pooled[:, None, None] if self.nhwc else pooled[:, :, None, None]


def _seam(model: nn.Module) -> _Seam:
    return next(_SEAMS[name] for name in class_names(model) if name in _SEAMS)


def _is_nhwc(model: nn.Module) -> bool:
    """Whether the feature map has its channels last; timm says so in `output_fmt`."""
    return getattr(model, "output_fmt", "NCHW") == "NHWC"


def _to_tokens(feature_map: Tensor, nhwc: bool, relu: bool) -> Tensor:
    """[B, D, h, w] or [B, h, w, D] -> [B, h * w, D], row by row."""
    if relu:
        feature_map = F.relu(feature_map)
    return feature_map.flatten(1, 2) if nhwc else feature_map.flatten(2).transpose(1, 2)
