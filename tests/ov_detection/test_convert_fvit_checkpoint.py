"""convert_fvit_checkpoint.py on files with exactly the names and shapes of F-ViT's mmdet checkpoints."""

import json

import convert_fvit_checkpoint
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from fvit.fvit_model import build_fvit
from fvit_parts import StubClip, is_base, vocabulary

from last_vit.checkpoint import read_checkpoint

B16 = {"width": 768, "embed": 512, "depth": 12, "hidden": 2048, "patch": 16, "grid": 14}
L14 = {"width": 1024, "embed": 768, "depth": 24, "hidden": 2730, "patch": 14, "grid": 24}


def layer(name, *shape):
    """A weight, and a bias of the weight's first size."""
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def conv_module(name, *shape, normed=True):
    """mmcv's convolution, which has a bias only without a norm."""
    conv, bias = layer(f"{name}.conv", *shape)
    yield conv
    if normed:
        yield from layer(f"{name}.bn", shape[0])
        yield from ((f"{name}.bn.running_{part}", shape[:1]) for part in ("mean", "var"))
        yield f"{name}.bn.num_batches_tracked", ()
    else:
        yield bias


def tower_names(s):
    v, width, hidden, places = "backbone.visual.", s["width"], s["hidden"], s["grid"] ** 2
    yield f"{v}cls_token", (1, 1, width)
    yield f"{v}pos_embed", (1, places + 1, width)
    yield from layer(f"{v}patch_embed.proj", width, 3, s["patch"], s["patch"])
    for place in ("", *(f"blocks.{i}.attn." for i in range(s["depth"]))):
        yield from ((f"{v}{place}rope.freqs_{part}", (places, 64)) for part in ("cos", "sin"))
    for i in range(s["depth"]):
        b = f"{v}blocks.{i}."
        yield from ((f"{b}attn.{part}_proj.weight", (width, width)) for part in "qkv")
        yield from ((f"{b}attn.{part}_bias", (width,)) for part in "qv")
        for name in ("norm1", "norm2", "attn.inner_attn_ln"):
            yield from layer(f"{b}{name}", width)
        yield from layer(f"{b}attn.proj", width, width)
        for name, *shape in (("w1", hidden, width), ("w2", hidden, width), ("w3", width, hidden), ("ffn_ln", hidden)):
            yield from layer(f"{b}mlp.{name}", *shape)
    yield from layer(f"{v}norm", width)
    yield from layer(f"{v}head", s["embed"], width)


def detector_names(width, embed, classes, lvis, channels=256):
    for name in ("1.0", "1.3", "2.0"):
        yield from layer(f"backbone.interpolate{name}", width, width, 2, 2)
    for name, shape in conv_module("", width):
        if ".bn." in name:
            yield name.replace(".bn", "backbone.interpolate1.1"), shape
    for i in range(4):
        yield from conv_module(f"neck.lateral_convs.{i}", channels, width, 1, 1)
        yield from conv_module(f"neck.fpn_convs.{i}", channels, channels, 3, 3)
    for i in range(2):
        yield from conv_module(f"rpn_head.rpn_conv.{i}", channels, channels, 3, 3, normed=lvis)
    for name, count in (("cls", 3), ("reg", 12)):
        yield from layer(f"rpn_head.rpn_{name}", count, channels, 1, 1)
    box, mask = "roi_head.bbox_head.", "roi_head.mask_head."
    yield f"{box}detect_temperature", ()
    yield f"{box}all_embeddings", (embed, classes + 1)
    for name, out in (("fc_cls", classes + 1), ("fc_reg", 4), ("shared_fcs.1", embed)):
        yield from layer(f"{box}{name}", out, embed)
    for name, into in (("shared_fcs.0", channels * 49), ("cls_fcs.0", embed), ("reg_fcs.0", embed)):
        yield from layer(f"{box}{name}", embed, into)
    for head, name in ((box, "shared_convs"), *([(mask, "convs")] if lvis else [])):
        for i in range(4):
            yield from conv_module(f"{head}{name}.{i}", channels, channels, 3, 3)
    if lvis:
        yield from layer(f"{mask}upsample", channels, channels, 2, 2)
        yield from layer(f"{mask}conv_logits", 1, channels, 1, 1)


def fill(names):
    """Every tensor holds one number of its own, so the file is small and a mix-up shows."""
    return {
        name: torch.tensor(place).expand(shape)
        if name.endswith("tracked")
        else torch.tensor(place * 1e-3).expand(shape)
        for place, (name, shape) in enumerate(names)
    }


def save(weights, folder):
    """mmdet's layout."""
    torch.save(
        {"meta": {"epoch": 3, "config": "model = dict()"}, "state_dict": weights, "optimizer": {"state": {}}},
        folder / "mmdet.pth",
    )
    return ["--input", str(folder / "mmdet.pth"), "--output", str(folder / "ours.pth")]


EXPECTED = {
    "backbone.interpolate1.1.running_var": "backbone.fpn.bottom_up.level0.1.running_var",
    "neck.lateral_convs.0.conv.weight": "backbone.fpn.fpn_lateral2.weight",
    "neck.fpn_convs.3.bn.bias": "backbone.fpn.fpn_output5.norm.bias",
    "rpn_head.rpn_conv.1.conv.weight": "proposal_generator.rpn_head.conv.conv1.weight",
    "rpn_head.rpn_reg.weight": "proposal_generator.rpn_head.anchor_deltas.weight",
    "roi_head.bbox_head.detect_temperature": "roi_heads.box_predictor.classifier.temperature",
    "roi_head.bbox_head.shared_convs.0.bn.running_mean": "roi_heads.box_head.conv1.norm.running_mean",
    "roi_head.bbox_head.shared_fcs.1.weight": "roi_heads.box_head.fc2.weight",
    "roi_head.bbox_head.cls_fcs.0.bias": "roi_heads.box_predictor.cls_fc.bias",
    "roi_head.bbox_head.fc_reg.bias": "roi_heads.box_predictor.bbox_pred.bias",
}
EXPECTED_LVIS = {
    "rpn_head.rpn_conv.0.bn.weight": "proposal_generator.rpn_head.conv.conv0.norm.weight",
    "roi_head.mask_head.convs.3.conv.weight": "roi_heads.mask_head.mask_fcn4.weight",
    "roi_head.mask_head.conv_logits.weight": "roi_heads.mask_head.predictor.weight",
}


EXPECTED_TOWER = {
    "pos_embed": "pos_embed",
    "blocks.0.attn.q_proj.bias": "blocks.0.attn.q_bias",
    "blocks.11.attn.norm.weight": "blocks.11.attn.inner_attn_ln.weight",
    "blocks.5.mlp.fc1_g.weight": "blocks.5.mlp.w1.weight",
    "blocks.5.mlp.fc1_x.weight": "blocks.5.mlp.w2.weight",
    "blocks.5.mlp.norm.bias": "blocks.5.mlp.ffn_ln.bias",
    "head.bias": "head.bias",
}


@pytest.mark.parametrize(("sizes", "classes", "lvis"), [(B16, 65, False), (L14, 1203, True)])
def test_full_size(tmp_path, capsys, sizes, classes, lvis):
    weights = fill([*tower_names(sizes), *detector_names(sizes["width"], sizes["embed"], classes, lvis)])
    arguments = save(weights, tmp_path)
    convert_fvit_checkpoint.main(arguments)
    said = capsys.readouterr().out
    ours = read_checkpoint(tmp_path / "ours.pth")["model"]
    for theirs, name in {**EXPECTED, **(EXPECTED_LVIS if lvis else {})}.items():
        assert ours[name].shape == weights[theirs].shape
        assert (ours[name] == weights[theirs]).all()
    dropped = [name for name in weights if name.startswith(("backbone.visual", "roi_head.bbox_head.fc_cls"))]
    assert len(ours) == len(weights) - len(dropped) - 1
    assert f"left out {len(dropped) - 2}, backbone.visual.*" in said
    assert "left out 1, roi_head.bbox_head.all_embeddings*" in said
    assert "left out 2, roi_head.bbox_head.fc_cls.*" in said
    if not lvis:  # with its tower: EVA's own names become those of open_clip's
        convert_fvit_checkpoint.main([*arguments, "--tower", "EVA02-B-16"])
        assert "backbone.visual" not in capsys.readouterr().out
        ours = read_checkpoint(tmp_path / "ours.pth")["model"]
        for name, theirs in EXPECTED_TOWER.items():
            assert torch.equal(ours[f"backbone.clip.tower.trunk.{name}"], weights[f"backbone.visual.{theirs}"]), name


def test_the_file_loads_into_a_detector_of_its_size(tmp_path):
    """Strictly, and through detectron2's checkpointer; sizes are taken from the file."""
    weights = fill(detector_names(16, 8, 4, lvis=True, channels=12))
    weights["roi_head.bbox_head.detect_temperature"] = torch.tensor([43.5])  # one number of either shape
    convert_fvit_checkpoint.main(save(weights, tmp_path))
    sizes = {"conv_width": 12, "masks": True, "fc_width": 8}
    model = build_fvit(StubClip(), vocabulary(), is_base(), channels=12, rpn={"norm": "BN"}, roi_heads=sizes)
    model.load_state_dict(read_checkpoint(tmp_path / "ours.pth")["model"], strict=True)
    assert model.roi_heads.box_predictor.classifier.temperature.item() == 43.5
    DetectionCheckpointer(model).load(str(tmp_path / "ours.pth"))


def test_base_classes_come_along(tmp_path, capsys):
    arguments = save(fill(detector_names(16, 8, 4, lvis=False, channels=12)), tmp_path)
    categories = [{"id": 1, "name": "cat", "frequency": "c"}, {"id": 2, "name": "yak", "frequency": "r"}]
    (tmp_path / "lvis.json").write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    convert_fvit_checkpoint.main(arguments)
    assert "detector" not in read_checkpoint(tmp_path / "ours.pth")
    convert_fvit_checkpoint.main([*arguments, "--json", str(tmp_path / "lvis.json")])
    assert read_checkpoint(tmp_path / "ours.pth")["detector"] == {"base_names": ["cat"]}


@pytest.mark.parametrize(
    ("change", "flags", "match"),
    [
        ({"roi_head.bbox_head.fc_iou.weight": torch.zeros(3)}, [], "fc_iou.weight' is no tensor of F-ViT"),
        ({"neck.fpn_convs.2.bn.weight": torch.zeros(7)}, [], "backbone.fpn.fpn_output4.norm.weight [7] -> [12]"),
        ({"neck.fpn_convs.2.bn.weight": None}, [], "missing"),
        ({"roi_head.bbox_head.cls_fcs.0.weight": None}, [], "nothing in the file became"),
        ({}, ["--tower", "EVA02-B-99"], "EVA02-B-16"),
        ({}, ["--input", "nowhere.pth"], "nowhere.pth"),
    ],
)
def test_another_file_is_refused(tmp_path, refused, change, flags, match):
    weights = {**fill(detector_names(16, 8, 4, lvis=False, channels=12)), **change}
    arguments = save({name: tensor for name, tensor in weights.items() if tensor is not None}, tmp_path)
    message = refused(convert_fvit_checkpoint.main, *arguments, *flags)
    assert match in message
    assert flags or "mmdet.pth" in message
    assert not (tmp_path / "ours.pth").exists()
