"""F-ViT's mmdet names to those of our detector, and the file that convert_fvit_checkpoint.py writes."""

import re
from argparse import Namespace
from collections.abc import Mapping
from types import SimpleNamespace

import torch
from class_embeddings import ClassEmbeddings
from fvit.frozen_clip import FrozenClip
from fvit.fvit_model import build_fvit
from ov_classes import read_ov_classes
from torch import Tensor, nn

from last_vit.checkpoint import file_sha256, fit_names, load_strict, read_checkpoint, save_checkpoint
from last_vit.data.coco import read_coco_json

_TOWER = "backbone.clip.tower."
_RULES = (
    (r"backbone\.interpolate1\.", "backbone.fpn.bottom_up.level0."),
    (r"backbone\.interpolate2\.", "backbone.fpn.bottom_up.level1."),
    (r"neck\.lateral_convs\.(\d+)\.", lambda match: f"backbone.fpn.fpn_lateral{int(match[1]) + 2}."),
    (r"neck\.fpn_convs\.(\d+)\.", lambda match: f"backbone.fpn.fpn_output{int(match[1]) + 2}."),
    (r"rpn_head\.rpn_conv\.(\d+)\.", r"proposal_generator.rpn_head.conv.conv\1."),
    (r"rpn_head\.rpn_cls\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"rpn_head\.rpn_reg\.", "proposal_generator.rpn_head.anchor_deltas."),
    (r"roi_head\.bbox_head\.detect_temperature$", "roi_heads.box_predictor.classifier.temperature"),
    (r"roi_head\.bbox_head\.shared_convs\.(\d+)\.", lambda match: f"roi_heads.box_head.conv{int(match[1]) + 1}."),
    (r"roi_head\.bbox_head\.shared_fcs\.(\d+)\.", lambda match: f"roi_heads.box_head.fc{int(match[1]) + 1}."),
    (r"roi_head\.bbox_head\.cls_fcs\.0\.", "roi_heads.box_predictor.cls_fc."),
    (r"roi_head\.bbox_head\.reg_fcs\.0\.", "roi_heads.box_predictor.reg_fc."),
    (r"roi_head\.bbox_head\.fc_reg\.", "roi_heads.box_predictor.bbox_pred."),
    (r"roi_head\.mask_head\.convs\.(\d+)\.", lambda match: f"roi_heads.mask_head.mask_fcn{int(match[1]) + 1}."),
    (r"roi_head\.mask_head\.upsample\.", "roi_heads.mask_head.deconv."),
    (r"roi_head\.mask_head\.conv_logits\.", "roi_heads.mask_head.predictor."),
)
_LEFT_OUT = {
    "backbone.visual.": "the frozen CLIP; the configuration names its file, or --tower takes it along",
    "roi_head.bbox_head.all_embeddings": "class embeddings; an input of the detector",
    "roi_head.bbox_head.fc_cls.": "built by F-ViT's base class, never used",
}


def rename(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """A state dict of mmdet under our names; and beginning of a name -> the names that are left out for it.

    ValueError: A name that is none of F-ViT's.
    """
    renamed: dict[str, Tensor] = {}
    left_out: dict[str, list[str]] = {}
    for name, tensor in weights.items():
        reason = next((start for start in _LEFT_OUT if name.startswith(start)), None)
        rule = next((rule for rule in _RULES if re.match(rule[0], name)), None)
        if reason is not None:
            left_out.setdefault(reason, []).append(name)
        elif rule is None:
            raise ValueError(f"{name!r} is no tensor of F-ViT: expected one of its mmdet checkpoints")
        else:
            # mmcv's convolutions hold their parts under other names; the temperature is one number of any shape
            ours = re.sub(*rule, name).replace(".conv.weight", ".weight").replace(".conv.bias", ".bias")
            renamed[ours.replace(".bn.", ".norm.")] = tensor.reshape(()) if ours.endswith("temperature") else tensor
    return renamed, left_out


def build_like(weights: Mapping[str, Tensor], arch: str | None) -> nn.Module:
    """Our detector with the sizes of what `rename` gave, random weights, and the tower `arch`, if any.

    ValueError: A tensor that tells a size is not there; an unknown tower.
    """

    def shape(name: str) -> torch.Size:
        if name not in weights:
            raise ValueError(f"nothing in the file became {name!r}: it is no checkpoint of F-ViT, or not a whole one")
        return weights[name].shape

    def count(start: str) -> int:
        return len({name[len(start) :].split(".")[0] for name in weights if name.startswith(start)})

    embed_dim = shape("roi_heads.box_predictor.cls_fc.weight")[0]
    width = shape("backbone.fpn.bottom_up.level0.0.weight")[0]
    if arch is None:
        clip = SimpleNamespace(width=width, embed_dim=embed_dim, patch_size=16, source=None)
    else:
        clip = FrozenClip(arch, random_seed=0, in_checkpoint=True)
        if (clip.width, clip.embed_dim) != (width, embed_dim):
            raise ValueError(
                f"{arch} has blocks of width {clip.width} and embeddings of {clip.embed_dim}, the detector was trained "
                f"on {width} and {embed_dim}: name its own tower (EVA02-B-16 or EVA02-L-14-336)"
            )
    return build_fvit(
        clip,
        ClassEmbeddings(("any",), torch.ones(1, embed_dim), torch.ones(embed_dim), "none", "none"),
        torch.tensor([True]),
        channels=shape("backbone.fpn.fpn_lateral2.weight")[0],
        norm="BN",  # SyncBN has the same names
        rpn={
            "num_convs": count("proposal_generator.rpn_head.conv."),
            "norm": "BN" if "proposal_generator.rpn_head.conv.conv0.norm.weight" in weights else "",
        },
        roi_heads={
            "masks": any(name.startswith("roi_heads.mask_head.") for name in weights),
            "fc_width": shape("roi_heads.box_head.fc1.weight")[0],
            "num_convs": count("roi_heads.box_head.conv"),
            "conv_width": shape("roi_heads.box_head.conv1.weight")[0],
        },
    )


def convert(args: Namespace) -> None:
    """Write --output in detectron2's layout, {"model": state dict, ...}, from --input, and say what was done.

    FileNotFoundError: No such file, or no folder for the output. ValueError: Unreadable, refused, or no checkpoint of
    F-ViT.
    """
    content = read_checkpoint(args.input, args.allow_pickle)
    weights = content.get("state_dict", content)
    try:
        renamed, left_out = rename(weights)
        model = build_like(renamed, args.tower)
        if args.tower is not None:
            tower = {name.removeprefix("backbone."): weights[name] for name in left_out.pop("backbone.visual.", ())}
            own = [f"visual.{name}" for name in model.backbone.clip.tower.state_dict()]
            renamed |= {_TOWER + name.removeprefix("visual."): part for name, part in fit_names(tower, own).items()}
        load_strict(model, renamed)
    except ValueError as error:
        raise ValueError(f"{args.input}: {error}") from error
    made = {"model": model.state_dict(), "source_sha256": file_sha256(args.input), "tower": args.tower}
    if args.json is not None:
        base_names = read_ov_classes(read_coco_json(args.json)["categories"]).base_names
        made["detector"] = {"base_names": sorted(base_names)}
    save_checkpoint(args.output, made)
    print(f"written {args.output}: {len(renamed)} tensors of {len(weights)}")
    for start, names in left_out.items():
        print(f"left out {len(names)}, {start}*: {_LEFT_OUT[start]}")
