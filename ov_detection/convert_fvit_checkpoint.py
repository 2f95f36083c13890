"""F-ViT's published mmdet checkpoints -> weights for the detector of ov_detection/.

    python ov_detection/convert_fvit_checkpoint.py --input fvit_vitb16_coco.pth --output fvit_coco.pth \\
        --json annotations/instances_train2017_seen_2_65_cat.json
    python ov_detection/lazy_train.py --config-file ... --eval-only train.init_checkpoint=fvit_coco.pth

Every name is mapped, every shape compared, and what is left out is printed with its reason: the class embeddings,
which are an input here and no weight; the classifier that F-ViT's base class builds and never uses; and the frozen
CLIP, whose file the configuration names. With --tower ARCH the CLIP in the file, which may be a fine-tuned one, comes
along, for a detector with clip.in_checkpoint=True. With --json, an annotation file of the set that it was trained on,
the names of its base classes come along, which predict.py scores differently from others.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from last_vit.command_line import command_parser, run_command_line

if TYPE_CHECKING:
    from torch import Tensor, nn

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
    """Names of mmdet -> ours.

    Args:
        weights: F-ViT's state dict.

    Returns:
        Our name -> the same tensors; and beginning of a name -> the names that are left out for it.

    Raises:
        ValueError: A name that is none of F-ViT's.
    """
    renamed: dict[str, Tensor] = {}
    left_out: dict[str, list[str]] = {}
    for name, tensor in weights.items():
        reason = next((start for start in _LEFT_OUT if name.startswith(start)), None)
        rule = next(((pattern, ours) for pattern, ours in _RULES if re.match(pattern, name)), None)
        if reason is not None:
            left_out.setdefault(reason, []).append(name)
        elif rule is None:
            raise ValueError(f"{name!r} is no tensor of F-ViT: expected one of its mmdet checkpoints")
        else:
            # mmcv's convolutions hold their parts under other names
            ours = re.sub(*rule, name).replace(".conv.weight", ".weight").replace(".conv.bias", ".bias")
            renamed[ours.replace(".bn.", ".norm.")] = tensor
    temperature = "roi_heads.box_predictor.classifier.temperature"
    if temperature in renamed:
        renamed[temperature] = renamed[temperature].reshape(())
    return renamed, left_out


def build_like(weights: Mapping[str, Tensor], arch: str | None) -> nn.Module:
    """Our detector with the sizes of a state dict in our names, and random weights.

    Args:
        weights: As `rename` gives them.
        arch: Tower to hold, or None for none.

    Raises:
        ValueError: A tensor that tells a size is not there; an unknown tower.
    """
    _import_fvit()
    import torch
    from class_embeddings import ClassEmbeddings, ClassSplit
    from fvit.frozen_clip import FrozenClip
    from fvit.fvit_model import build_fvit

    def shape(name: str) -> torch.Size:
        if name not in weights:
            raise ValueError(f"nothing in the file became {name!r}: it is no checkpoint of F-ViT, or not a whole one")
        return weights[name].shape

    def count(start: str) -> int:
        return len({name[len(start) :].split(".")[0] for name in weights if name.startswith(start)})

    embed_dim = shape("roi_heads.box_predictor.cls_fc.weight")[0]
    width = shape("backbone.fpn.bottom_up.level0.0.weight")[0]
    if arch is None:
        clip = SimpleNamespace(width=width, embed_dim=embed_dim, patch_size=16)  # no tensor depends on the patch
    else:
        clip = FrozenClip(arch, random_seed=0, in_checkpoint=True)
        if (clip.width, clip.embed_dim) != (width, embed_dim):
            raise ValueError(
                f"{arch} has blocks of width {clip.width} and embeddings of {clip.embed_dim}, the detector was trained "
                f"on {width} and {embed_dim}: name its own tower (EVA02-B-16 or EVA02-L-14-336)"
            )
    words = ClassEmbeddings(("any",), torch.ones(1, embed_dim), torch.ones(embed_dim), "none", "none")
    return build_fvit(
        clip,
        words,
        ClassSplit(base=torch.tensor([True]), novel=torch.tensor([False])),
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


def convert(
    source: Path, target: Path, arch: str | None = None, json_file: Path | None = None, allow_pickle: bool = False
) -> list[str]:
    """Write `target` from `source`.

    Args:
        source: mmdet's file.
        target: File to write, in detectron2's layout: {"model": state dict, ...}.
        arch: open_clip architecture of the tower to take along; None takes none.
        json_file: Annotations of OV-COCO or LVIS whose base classes are those of training; None records none.
        allow_pickle: See `last_vit.checkpoint.read_checkpoint`.

    Returns:
        What was done, in lines to print.

    Raises:
        FileNotFoundError: No `source`, or no folder for `target`.
        ValueError: Unreadable, refused, or no checkpoint of F-ViT.
    """
    from last_vit.checkpoint import file_sha256, fit_names, load_strict, read_checkpoint, save_checkpoint

    content = read_checkpoint(source, allow_pickle)
    weights = content.get("state_dict", content)
    try:
        renamed, left_out = rename(weights)
        model = build_like(renamed, arch)
        if arch is not None:
            tower = {name.removeprefix("backbone."): weights[name] for name in left_out.pop("backbone.visual.", ())}
            own = [f"visual.{name}" for name in model.backbone.clip.tower.state_dict()]
            renamed |= {_TOWER + name.removeprefix("visual."): part for name, part in fit_names(tower, own).items()}
        load_strict(model, renamed)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    known = {} if json_file is None else {"detector": {"base_names": _base_names(json_file)}}
    save_checkpoint(target, {"model": model.state_dict(), "source_sha256": file_sha256(source), "tower": arch, **known})
    lines = [f"written {target}: {len(renamed)} tensors of {len(weights)}"]
    return lines + [f"left out {len(names)}, {start}*: {_LEFT_OUT[start]}" for start, names in left_out.items()]


def _base_names(json_file: Path) -> list[str]:
    from ov_classes import read_ov_classes

    from last_vit.data.coco import read_coco_json

    classes = read_ov_classes(read_coco_json(json_file)["categories"])
    return sorted(name for name, is_base in zip(classes.names, classes.split.base.tolist(), strict=True) if is_base)


def _import_fvit() -> None:
    """Let `import fvit` find the package in ov_detection/, a script folder that is on no path of ours."""
    if importlib.util.find_spec("fvit") is None:
        folder = Path(__file__).resolve().parents[1] / "ov_detection" / "fvit"
        spec = importlib.util.spec_from_file_location("fvit", folder / "__init__.py")
        sys.modules["fvit"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["fvit"])


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = command_parser("convert_fvit_checkpoint.py", __doc__)
    parser.add_argument("--input", type=Path, required=True, help="F-ViT's .pth, as mmdet saved it")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    parser.add_argument("--tower", metavar="ARCH", help="take the CLIP along: EVA02-B-16 or EVA02-L-14-336")
    parser.add_argument("--json", type=Path, metavar="FILE", help="annotations, whose base classes predict.py needs")
    parser.add_argument(
        "--allow-pickle", action="store_true", help="read a file that carries code, which then runs: only if trusted"
    )
    run_command_line(
        parser,
        lambda args: print("\n".join(convert(args.input, args.output, args.tower, args.json, args.allow_pickle))),
        argv,
    )


if __name__ == "__main__":
    main()
