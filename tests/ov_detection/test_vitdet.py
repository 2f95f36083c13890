"""Mask R-CNN on a plain ViT: the backbone's weights are the host's, strictly, and the detector trains and says no."""

import json
import logging
import re
from functools import partial
from pathlib import Path

import predict
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling.backbone.vit import ViT
from fvit.fvit_layers import zoo_model
from lazy_parts import REPO, LazyTrain, losses, record
from ov_data import OvImageSet
from ov_parts import HEIGHT, WIDTH, coco_categories, random_content, write_images, write_json
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch.nn import LayerNorm
from torchvision.models import VisionTransformer
from vitdet import host_backbone
from vitdet.host_backbone import FrozenHost
from vitdet.mask_rcnn import build_mask_rcnn

from last_vit.dense import attach_pool, dense_forward
from last_vit.dino_vit import DinoVisionTransformer
from last_vit.lazy_config import build_model
from last_vit.preprocessing import Preprocessing, add_registers
from last_vit.weights import TrainedModel

COCO = REPO / "ov_detection" / "configs" / "coco"
NET = {"embed_dim": 24, "depth": 3, "num_heads": 3, "pretrain_img_size": 64, "use_rel_pos": True}
SIDE, GRID = 64, 4


def timm_host(registers=0, **options):
    model = TimmViT(SIDE, 16, num_classes=5, embed_dim=24, depth=3, num_heads=3, **options)
    if registers:
        add_registers(model, registers)
    return model


def torchvision_host(side=SIDE):
    model = VisionTransformer(side, 16, num_layers=3, num_heads=3, hidden_dim=24, mlp_dim=96, num_classes=5)
    torch.nn.init.normal_(model.encoder.pos_embedding)
    return attach_pool(model, "last", top_k=3)  # as cls_pretrain's files are


HOSTS = {
    "timm": timm_host,
    "timm-registers": lambda: timm_host(registers=4),
    "timm-mean": lambda: timm_host(global_pool="avg", class_token=False),
    "torchvision": torchvision_host,
    "dino": lambda: DinoVisionTransformer(SIDE, 16, 24, 3, 3),
}


@pytest.fixture
def as_init(monkeypatch):
    """Make a host the model of every text."""

    def give(host, side=SIDE):
        trained = TrainedModel(host.eval(), Preprocessing().resized(side), {}, "", "0" * 16, 5)
        argument = type("Argument", (), {"load": lambda self, *size: trained})
        monkeypatch.setattr(host_backbone, "parse_model_argument", lambda text: argument())
        return trained

    return give


def without_class_token(host, images):
    """A host's blocks on its patches and their positions alone, [B, h, w, D], before the final norm."""
    named = {host_backbone._renamed(name): value for name, value in host.state_dict().items()}
    stem = torch.nn.functional.conv2d(
        images, named["patch_embed.proj.weight"], named["patch_embed.proj.bias"], stride=16
    )
    tokens = stem.flatten(2).transpose(1, 2) + named["pos_embed"][:, -(GRID**2) :]
    for block in host.encoder.layers if hasattr(host, "encoder") else host.blocks:
        tokens = block(tokens)
    return tokens.unflatten(1, (GRID, GRID))


@pytest.mark.parametrize("windows", [{}, {"window_size": 2, "window_block_indexes": [0, 1]}])
@pytest.mark.parametrize("name", HOSTS)
def test_backbone_computes_what_the_host_does_on_patches(name, windows, as_init, caplog, monkeypatch):
    """In float64. ViTDet's attention sees no class token, so the host is run without it; windows change its answer."""
    torch.manual_seed(0)
    host = HOSTS[name]()
    as_init(host)
    vit = ViT(img_size=SIDE, pretrain_use_cls_token=False, norm_layer=partial(LayerNorm, eps=1e-6), **NET, **windows)
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    with caplog.at_level("INFO", "detectron2"):
        host_backbone.start_from(vit, "text")
    images = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
    with torch.no_grad():
        ours = vit.double().eval()(images)["last_feat"].permute(0, 2, 3, 1)
        expected = without_class_token(host.double(), images)
    assert torch.allclose(ours, expected, rtol=1e-9, atol=1e-9) == (not windows)
    listed = re.search("left out on purpose: (.*); new: 6 relative positions", caplog.text)[1].split(", ")
    used = ("blocks.", "encoder_layer_", "patch_embed.", "conv_proj.", "pos_embed")
    assert listed == [name for name in host.state_dict() if not any(part in name for part in used)]


def test_positions_of_another_grid_are_interpolated(as_init):
    """A smooth ramp over 8 x 8 patches stays one over 4 x 4; the same grid is copied bit by bit."""
    host = torchvision_host(side=128)
    ramp = torch.linspace(0, 1, 8)[:, None].expand(8, 8).reshape(64, 1).expand(64, 24)
    host.encoder.pos_embedding.data[0, 1:] = ramp
    as_init(host, side=128)
    vit = build_mask_rcnn(("a",), init="text", net=NET, square_size=SIDE, channels=16).backbone.net
    rows = vit.pos_embed.detach().unflatten(1, (4, 4))[0, :, :, 0]
    assert torch.allclose(rows, rows[:, :1].expand(4, 4))
    assert torch.allclose(rows[:, 0], torch.tensor([1, 5, 9, 13]) / 14, atol=0.02)


@pytest.mark.parametrize(
    ("net", "host", "words"),
    [
        ({"embed_dim": 48}, timm_host, "other shape (checkpoint -> model), 39: pos_embed [1, 16, 24] -> [1, 16, 48]"),
        ({"depth": 4}, timm_host, "missing (the model has them, the checkpoint has not), 12: blocks.3.norm1.weight"),
        ({"depth": 2}, timm_host, "unexpected (the checkpoint has them, the model has not), 12: blocks.2.norm1.weight"),
        ({"patch_size": 32}, timm_host, "patch_embed.proj.weight [24, 3, 16, 16] -> [24, 3, 32, 32]"),
        ({"num_heads": 2}, timm_host, "its blocks have {3} heads, model.net.num_heads=2"),
        (
            {},
            lambda: timm_host(init_values=1e-5),
            "unexpected (the checkpoint has them, the model has not), 6: blocks.0",
        ),
        ({}, lambda: timm_host(pre_norm=True), "norm_pre.weight"),
    ],
)
def test_backbones_that_do_not_fit(net, host, words, as_init):
    as_init(host())
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        build_mask_rcnn(("a",), init="text", net={**NET, **net}, square_size=SIDE, channels=16)
    assert "model.init=text cannot be the backbone that model.net describes" in str(caught.value)
    for options, message in (
        ({"frozen": True}, "model.frozen needs model.init"),
        ({"net": {**NET, "patch_size": 8}}, "patches must be of 16 pixels"),
        ({"square_size": 48}, "two of them fit square_size"),
    ):
        with pytest.raises(ValueError, match=message):
            build_mask_rcnn(("a",), **{"net": NET, "square_size": SIDE, "channels": 16, **options})


def test_a_frozen_host_is_read_as_it_is_and_once():
    """Its patch tokens are dense_forward's, class token and all; it is in no state dict."""
    backbone = FrozenHost("dino:vit_mini/16@random", SIDE, cache_images=2).train()
    images, calls = torch.randn(3, 3, SIDE, SIDE), []
    backbone.tower.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    found = [backbone(images[places])["last_feat"] for places in ([0, 1], [1, 0], [2], [2])]
    expected = dense_forward(backbone.tower, images).patch_tokens.detach().transpose(1, 2).unflatten(2, (GRID, GRID))
    assert torch.equal(found[1], found[0].flip(0))
    torch.testing.assert_close(torch.cat([found[0], found[3]]), expected)
    assert len(calls) == 3 + 1  # two at once, the third twice as it is not kept, and the expected
    assert list(backbone.state_dict()) == list(backbone.parameters()) == []
    assert not found[0].requires_grad
    assert not backbone.tower.training


@pytest.mark.parametrize("path", sorted(COCO.glob("*.py")), ids=lambda path: path.stem)
def test_recipes_are_vitdets(path, monkeypatch):
    """FACTS of ViTDet: LN heads, 4 convolutions and one FC, layer decay 0.7, 1 - 0.1 at 88.9 and 96.3 % of any run."""
    cfg = LazyConfig.load(str(path))
    assert f"--config-file {path.relative_to(REPO)}" in (text := path.read_text())
    assert "model.init=" in text
    schedule = instantiate({**cfg.lr_multiplier, "warmup_length": 0.01})
    assert [schedule(where) for where in (0.5, 0.9, 0.97)] == pytest.approx([1, 0.1, 0.01])
    if path.stem.startswith("coco_mini"):
        return
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay, cfg.train.epochs, cfg.train.lr_batch_size) == (
        1e-4,
        0.1,
        100,
        64,
    )
    monkeypatch.setattr(torch.nn.init, "trunc_normal_", lambda tensor, **_: tensor)  # for speed
    model = build_model({**cfg.model, "names": [str(label) for label in range(80)]})
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    net, heads = model.backbone.net, model.roi_heads
    assert net.pos_embed.shape == (1, 196, 384 if path.stem.endswith("_s") else 768)
    if path.stem.endswith("_b"):  # detectron2's own, but for the class token's position
        theirs = {name: weight.shape for name, weight in instantiate(zoo_model()).named_parameters()}
        assert {**shapes, "backbone.net.pos_embed": (1, 197, 768)} == theirs
    assert [block.window_size for block in net.blocks] == [14, 14, 0] * 4
    groups = instantiate({**cfg.optimizer.params, "model": model, "lr": 1.0, "depth": 12})
    rate = {id(value): group["lr"] for group in groups for value in group["params"]}
    assert rate[id(net.pos_embed)] == pytest.approx(0.7**13)
    assert rate[id(net.blocks[11].mlp.fc1.weight)] == pytest.approx(0.7)
    assert rate[id(heads.box_head.conv1.weight)] == 1


@pytest.fixture
def small_coco(tmp_path, monkeypatch):
    """Overrides of the coco-mini recipes for six tiny images."""
    monkeypatch.chdir(tmp_path)
    content = random_content(coco_categories(["lamp", "tree", "owl"]), crowds=False)
    write_images(tmp_path / "images", content)
    write_json(tmp_path / "x.json", content)
    sets = ["train.dataset", "test.dataset"]
    words = [f"dataloader.{name}.{key}" for name in sets for key in ("json_file=x.json", "image_root=images")]
    words += [f"model.square_size={SIDE}", "train.epochs=1", "train.log_period=1", "model.channels=16"]
    return [*words, "dataloader.train.batch_size=2"], content


FROZEN = ["model.frozen=True", "model.init=dino:vit_mini/16@random"]
TINY = ["model.net={patch_size: 16, embed_dim: 24, depth: 2, num_heads: 3, window_size: 2, window_block_indexes: [0]}"]


@pytest.mark.parametrize("backbone", [FROZEN, TINY], ids=["frozen", "trained"])
def test_it_trains_resumes_and_is_evaluated(backbone, small_coco, refused):
    """Two halves are the whole, bit by bit; the checkpoint alone evaluates to the same numbers."""
    options, _ = small_coco
    lazy, config = LazyTrain("ov_detection"), COCO / "coco_mini.py"
    assert lazy.run(*options, *backbone, "train.output_dir=whole", config=config) == 0
    half = [*options, *backbone, "train.output_dir=half"]
    assert lazy.run(*half, "train.max_iter=2", config=config) == 0
    assert lazy.run("--resume", *half, "train.max_iter=3", config=config) == 0
    first, second = losses("whole"), losses("half")
    assert set(first) == set(second) == {0, 1, 2}
    content = torch.load("whole/model_final.pth", weights_only=True)
    assert content["detector"]["names"] == {"0": "lamp", "1": "tree", "2": "owl"}
    assert any("net.blocks" in key for key in content["model"]) == (backbone is TINY)
    checkpoint = "train.init_checkpoint=whole/model_final.pth"
    assert lazy.run("--eval-only", *options, *backbone, checkpoint, "train.output_dir=again", config=config) == 0
    trained, again = record("whole/train_whole.json"), record("again/eval_again.json")
    assert trained["metrics"] == again["metrics"]
    assert {"ap_all", "mask_ap_all", "seen_ap_all", "seen_mask_ap_all"} <= set(trained["metrics"])
    assert again["config"]["backbone"] == trained["config"]["backbone"]
    image, *_ = Path("images").iterdir()
    command = ["--config-file", config, "--checkpoint", "whole/model_final.pth", "--image", image, "--threshold", "0"]
    command = [str(word) for word in (*command, "--output", "seen", "--opts", *options, *backbone)]
    predict.main(command)
    answer = json.loads(Path("seen/detections.json").read_text())
    assert answer["vocabulary"] == ["lamp", "tree", "owl"]
    assert answer["images"][0]["detections"][0]["segmentation"]["size"] == [HEIGHT, WIDTH]
    assert "leave out --vocabulary" in refused(predict.main, "--vocabulary", "cat", *command)


def test_files_that_do_not_fit(small_coco, capsys):
    """Masks that a file has not, other classes than a checkpoint's, another frozen backbone; kept crops."""
    options, content = small_coco
    lazy, config = LazyTrain("ov_detection"), COCO / "coco_mini.py"
    assert lazy.run(*options, *FROZEN, "train.max_iter=1", "train.output_dir=run", config=config) == 0
    test = ["--eval-only", *options, "train.init_checkpoint=run/model_final.pth"]
    for entry in content["annotations"]:
        del entry["segmentation"]
    write_json(Path("bare.json"), content)
    content["categories"][0]["name"] = "crow"
    write_json(Path("other.json"), content)
    for words, message in (
        ([*options, *FROZEN, "dataloader.train.dataset.json_file=bare.json"], "none of its 30 objects has a mask"),
        (
            [*test, *FROZEN, "dataloader.test.dataset.json_file=other.json"],
            "was trained on another set of classes (0 'lamp'",
        ),
        (
            [*test, *FROZEN, 'model.init="dino:vit_mini/16@random,seed=1"'],
            "was trained on another frozen backbone (weights 'random, seed 0'",
        ),
    ):
        capsys.readouterr()
        assert lazy.run(*words, "train.output_dir=other", config=config) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="it is for augment=False"):
        OvImageSet("x.json", "images", 32, train=True, keep=True, novel=())
    kept = OvImageSet("x.json", "images", 32, train=True, novel=(), augment=False, keep=True)
    assert kept[0] is kept[0]
