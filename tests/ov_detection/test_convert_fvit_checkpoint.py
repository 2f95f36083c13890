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


def linear(name, out, into, bias=True):
    yield f"{name}.weight", (out, into)
    if bias:
        yield f"{name}.bias", (out,)


def norm(name, width, batch=False):
    for part in ("weight", "bias", *(("running_mean", "running_var") if batch else ())):
        yield f"{name}.{part}", (width,)
    if batch:
        yield f"{name}.num_batches_tracked", ()


def conv_module(name, out, into, kernel, normed=True):
    """mmcv's convolution, which has a bias only without a norm."""
    yield f"{name}.conv.weight", (out, into, kernel, kernel)
    if normed:
        yield from norm(f"{name}.bn", out, batch=True)
    else:
        yield f"{name}.conv.bias", (out,)


def tower_names(s):
    v, width, head = "backbone.visual.", s["width"], 64
    yield f"{v}cls_token", (1, 1, width)
    yield f"{v}pos_embed", (1, s["grid"] ** 2 + 1, width)
    yield f"{v}patch_embed.proj.weight", (width, 3, s["patch"], s["patch"])
    yield f"{v}patch_embed.proj.bias", (width,)
    places = ["", *(f"blocks.{i}.attn." for i in range(s["depth"]))]
    for place in places:
        yield f"{v}{place}rope.freqs_cos", (s["grid"] ** 2, head)
        yield f"{v}{place}rope.freqs_sin", (s["grid"] ** 2, head)
    for i in range(s["depth"]):
        b = f"{v}blocks.{i}."
        for part in "qkv":
            yield f"{b}attn.{part}_proj.weight", (width, width)
        yield f"{b}attn.q_bias", (width,)
        yield f"{b}attn.v_bias", (width,)
        for name in ("norm1", "norm2", "attn.inner_attn_ln"):
            yield from norm(f"{b}{name}", width)
        yield from linear(f"{b}attn.proj", width, width)
        yield from linear(f"{b}mlp.w1", s["hidden"], width)
        yield from linear(f"{b}mlp.w2", s["hidden"], width)
        yield from norm(f"{b}mlp.ffn_ln", s["hidden"])
        yield from linear(f"{b}mlp.w3", width, s["hidden"])
    yield from norm(f"{v}norm", width)
    yield from linear(f"{v}head", s["embed"], width)


def detector_names(width, embed, classes, lvis, channels=256):
    yield "backbone.interpolate1.0.weight", (width, width, 2, 2)
    yield "backbone.interpolate1.0.bias", (width,)
    yield from norm("backbone.interpolate1.1", width, batch=True)
    yield "backbone.interpolate1.3.weight", (width, width, 2, 2)
    yield "backbone.interpolate1.3.bias", (width,)
    yield "backbone.interpolate2.0.weight", (width, width, 2, 2)
    yield "backbone.interpolate2.0.bias", (width,)
    for i in range(4):
        yield from conv_module(f"neck.lateral_convs.{i}", channels, width, 1)
        yield from conv_module(f"neck.fpn_convs.{i}", channels, channels, 3)
    for i in range(2):
        yield from conv_module(f"rpn_head.rpn_conv.{i}", channels, channels, 3, normed=lvis)
    for name, count in (("cls", 3), ("reg", 12)):
        yield f"rpn_head.rpn_{name}.weight", (count, channels, 1, 1)
        yield f"rpn_head.rpn_{name}.bias", (count,)
    box = "roi_head.bbox_head."
    yield f"{box}detect_temperature", ()
    yield f"{box}all_embeddings", (embed, classes + 1)
    yield from linear(f"{box}fc_cls", classes + 1, embed)
    yield from linear(f"{box}fc_reg", 4, embed)
    for i in range(4):
        yield from conv_module(f"{box}shared_convs.{i}", channels, channels, 3)
    yield from linear(f"{box}shared_fcs.0", embed, channels * 49)
    yield from linear(f"{box}shared_fcs.1", embed, embed)
    yield from linear(f"{box}cls_fcs.0", embed, embed)
    yield from linear(f"{box}reg_fcs.0", embed, embed)
    if lvis:
        mask = "roi_head.mask_head."
        for i in range(4):
            yield from conv_module(f"{mask}convs.{i}", channels, channels, 3)
        yield f"{mask}upsample.weight", (channels, channels, 2, 2)
        yield f"{mask}upsample.bias", (channels,)
        yield f"{mask}conv_logits.weight", (1, channels, 1, 1)
        yield f"{mask}conv_logits.bias", (1,)


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


@pytest.mark.parametrize(("sizes", "classes", "lvis"), [(B16, 65, False), (L14, 1203, True)])
def test_full_size(tmp_path, capsys, sizes, classes, lvis):
    weights = fill([*tower_names(sizes), *detector_names(sizes["width"], sizes["embed"], classes, lvis)])
    convert_fvit_checkpoint.main(save(weights, tmp_path))
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


def test_with_its_tower(tmp_path, capsys):
    """B/16 at full size: EVA's own names become those of open_clip's tower."""
    weights = fill([*tower_names(B16), *detector_names(768, 512, 65, lvis=False)])
    convert_fvit_checkpoint.main([*save(weights, tmp_path), "--tower", "EVA02-B-16"])
    assert "backbone.visual" not in capsys.readouterr().out
    ours = read_checkpoint(tmp_path / "ours.pth")["model"]
    trunk, visual = "backbone.clip.tower.trunk.", "backbone.visual."
    for name, theirs in {
        "pos_embed": "pos_embed",
        "blocks.0.attn.q_proj.bias": "blocks.0.attn.q_bias",
        "blocks.11.attn.norm.weight": "blocks.11.attn.inner_attn_ln.weight",
        "blocks.5.mlp.fc1_g.weight": "blocks.5.mlp.w1.weight",
        "blocks.5.mlp.fc1_x.weight": "blocks.5.mlp.w2.weight",
        "blocks.5.mlp.norm.bias": "blocks.5.mlp.ffn_ln.bias",
        "head.bias": "head.bias",
    }.items():
        assert ours[trunk + name].shape == weights[visual + theirs].shape
        assert (ours[trunk + name] == weights[visual + theirs]).all(), name


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"roi_head.bbox_head.fc_iou.weight": torch.zeros(3)}, "'roi_head.bbox_head.fc_iou.weight' is no tensor of"),
        ({"neck.fpn_convs.2.bn.weight": torch.zeros(7)}, "backbone.fpn.fpn_output4.norm.weight [7] -> [12]"),
        ({"neck.fpn_convs.2.bn.weight": None}, "missing"),
        ({"roi_head.bbox_head.cls_fcs.0.weight": None}, "nothing in the file became"),
    ],
)
def test_another_file_is_refused(tmp_path, capsys, change, match):
    weights = {**fill(detector_names(16, 8, 4, lvis=False, channels=12)), **change}
    arguments = save({name: tensor for name, tensor in weights.items() if tensor is not None}, tmp_path)
    with pytest.raises(SystemExit) as stop:
        convert_fvit_checkpoint.main(arguments)
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert match in message
    assert "mmdet.pth" in message
    assert not (tmp_path / "ours.pth").exists()


def test_another_tower_or_no_file(tmp_path, capsys):
    arguments = save(fill(detector_names(16, 8, 4, lvis=False, channels=12)), tmp_path)
    for extra, match in (
        (["--tower", "EVA02-B-99"], "EVA02-B-16"),
        (["--input", str(tmp_path / "nowhere.pth")], "nowhere.pth"),
    ):
        with pytest.raises(SystemExit):
            convert_fvit_checkpoint.main([*arguments, *extra])
        assert match in capsys.readouterr().err
