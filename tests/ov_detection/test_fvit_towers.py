"""The sixteen recipes with their real towers: sizes of everything, without weights; and one of them for real, on a CPU.

Towers are made on torch's meta device, where tensors have a shape and no content, so that L/14 costs nothing; from the
recipe to the pyramid all code is the project's own.
"""

from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path

import convert_fvit_checkpoint
import fvit_conversion
import pytest
import torch
from class_embeddings import ClassEmbeddings
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage
from fvit import frozen_clip
from fvit.frozen_clip import FrozenClip
from fvit_parts import sample
from ov_training import build_detector
from test_convert_fvit_checkpoint import L14, detector_names, fill, save, tower_names

from last_vit.clip_models import load_clip
from last_vit.lazy_config import read_config

pytest.importorskip("open_clip")
FOLDER = Path(__file__).resolve().parents[2] / "ov_detection" / "configs"
RECIPES = sorted(path for name in ("ov_coco", "ov_lvis") for path in (FOLDER / name).glob("fvit_*.py"))
RANDOM = ["model.clip.checkpoint=null", "model.clip.random_seed=0", "model.square_size=0"]  # any shape of image
# patch: FACTS of F-ViT: width, text width, taken blocks, finest stride, millions of numbers in the tower
TOWERS = {
    16: (768, 512, (3, 5, 7, 11), 4.0, 86.3),
    14: (1024, 768, (6, 10, 14, 23), 3.5, 304.4),
}


load_meta_clip = cache(partial(load_clip, device="meta"))  # one tower per architecture


@pytest.fixture
def meta_clip(monkeypatch):
    """`FrozenClip` on the meta device."""

    def build(*arguments, **options):
        with torch.device("meta"):
            return FrozenClip(*arguments, **options)

    monkeypatch.setattr(frozen_clip, "load_clip", load_meta_clip)
    monkeypatch.setattr(FrozenClip, "_autocast", lambda self, images: nullcontext())  # meta has no autocast
    return build


def words(num_classes, width):
    rows = torch.randn(num_classes + 1, width, generator=torch.Generator().manual_seed(0))
    names = tuple(f"c{i}" for i in range(num_classes))
    base = torch.arange(num_classes) % 4 > 0
    return ClassEmbeddings(names, rows[:-1], rows[-1], "random rows", "none"), base


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_sizes_of_every_recipe(path, meta_clip):
    patch = 14 if "vitl14" in path.stem else 16
    width, embed_dim, blocks, finest, size = TOWERS[patch]
    cfg = read_config(str(path), RANDOM, "")
    cfg.model.clip._target_ = meta_clip
    model = build_detector(cfg, *words(7, embed_dim))
    backbone, clip = model.backbone.to("meta"), model.backbone.clip
    images = torch.empty(2, 3, 8 * patch, 14 * patch, device="meta")
    trained, tested, raw = backbone.train()(images), backbone.eval()(images), clip(images)
    assert (clip.width, clip.embed_dim, clip.patch_size, clip.blocks) == (width, embed_dim, patch, blocks)
    assert sum(weight.numel() for weight in clip.tower.parameters()) / 1e6 == pytest.approx(size, abs=0.2)
    assert [tuple(block.shape) for block in raw.blocks] == [(2, width, 8, 14)] * 4
    assert list(backbone.strides.values()) == [finest * 2**level for level in range(5)]
    assert [tuple(trained[name].shape) for name in backbone.strides] == [
        (2, 256, *grid) for grid in ((32, 56), (16, 28), (8, 14), (4, 7), (2, 4))
    ]
    assert {name: level.shape for name, level in tested.items()} == {
        **{name: level.shape for name, level in trained.items()},
        "dense": (2, embed_dim, 8, 14),
    }
    assert model.roi_heads.box_pooler.strides == (finest, 2 * finest, 4 * finest, 8 * finest)
    assert model.roi_heads.dense_stride == patch
    assert model.roi_heads.box_head.fc1.weight.shape == (embed_dim, 256 * 7 * 7)
    assert model.roi_heads.mask_on == (path.parent.name == "ov_lvis")


def test_a_full_size_b16_trains_and_answers():
    """EVA02-CLIP B/16 with random weights in its recipe, heads of full width on few regions, an image that is wider."""
    few = ["model.rpn.post_nms_topk=[40,40]", "model.roi_heads.batch_size_per_image=16"]
    cfg = read_config(str(FOLDER / "ov_lvis" / "fvit_vitb16_last.py"), [*RANDOM, *few], "")
    model, inputs = build_detector(cfg, *words(5, 512)), [sample(96, 128, masks=True)]
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    scores = []
    for model.backbone.clip.dense in ("plain", "last-block-value"):
        with EventStorage(), torch.autocast("cpu", torch.bfloat16):
            losses = model.train()(inputs)
        sum(losses.values()).backward()
        assert all(torch.isfinite(loss) for loss in losses.values())
        assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            found = model.eval()(inputs)[0]["instances"]
        scores.append(found.scores)
        assert found.pred_masks.shape == (len(found), 96, 128)
        assert (found.pred_boxes.tensor <= torch.tensor([128.0, 96, 128, 96])).all()
        assert torch.isfinite(found.scores).all()
    assert min(map(len, scores)) > 0
    assert not torch.equal(*(some[:5] for some in scores))
    before = model.roi_heads.box_head.fc1.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, model.roi_heads.box_head.fc1.weight)


@pytest.mark.filterwarnings("ignore:.*to a meta parameter in the current model:UserWarning")
def test_converted_l14_has_the_towers_shapes(tmp_path, monkeypatch, meta_clip):
    """F-ViT's L/14 with its tower, EVA's names to open_clip's: every tensor of our detector, in its shape."""
    weights = fill([*tower_names(L14), *detector_names(L14["width"], L14["embed"], 1203, lvis=True)])
    arguments, written = save(weights, tmp_path), {}
    monkeypatch.setattr(fvit_conversion, "save_checkpoint", lambda path, content: written.update(content))
    monkeypatch.setattr(fvit_conversion, "FrozenClip", meta_clip)
    convert_fvit_checkpoint.main([*arguments, "--tower", "EVA02-L-14-336"])
    trunk, visual = "backbone.clip.tower.trunk.", "backbone.visual."
    for name, theirs in {
        "pos_embed": "pos_embed",
        "blocks.23.attn.q_proj.bias": "blocks.23.attn.q_bias",
        "blocks.23.attn.norm.weight": "blocks.23.attn.inner_attn_ln.weight",
        "blocks.12.mlp.fc1_g.weight": "blocks.12.mlp.w1.weight",
        "blocks.12.mlp.norm.bias": "blocks.12.mlp.ffn_ln.bias",
        "head.weight": "head.weight",
    }.items():
        assert written["model"][trunk + name].shape == weights[visual + theirs].shape
    assert sum("trunk." in name for name in written["model"]) == sum(
        visual in name and "rope" not in name for name in weights
    )
