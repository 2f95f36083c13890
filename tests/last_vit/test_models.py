"""A model on the command line: name, spec, weights and pooling in one text, built for the classes of its weights."""

from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from timm.layers import resample_abs_pos_embed
from torch.utils.data import DataLoader
from torchvision.models.vision_transformer import interpolate_embeddings

from last_vit.checkpoint import file_sha256, find_classifier, load_checkpoint, save_checkpoint
from last_vit.dense import dense_forward
from last_vit.models import (
    ModelArgument,
    build_model,
    load_trained_model,
    parse_model_argument,
    parse_model_arguments,
    preprocessing_of,
)
from last_vit.preprocessing import Preprocessing


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("torchvision:resnet50@random", ModelArgument("resnet50, random", "torchvision:resnet50", seed=0)),
        ("timm:x@random,seed=7", ModelArgument("x, random", "timm:x", seed=7)),
        ("timm:x.tag@pretrained", ModelArgument("x.tag, pretrained", "timm:x.tag", "pretrained")),
        ("timm:x.dino@runs/a/last.pth", ModelArgument("a/last", "timm:x.dino", "runs/a/last.pth")),
        ("LaSt K=1=timm:x@k=1/last.pth,top_k=1", ModelArgument("LaSt K=1", "timm:x", "k=1/last.pth", top_k=1)),
        (
            "A=a/conf.py@k=1/m.pth,pool=last,top_k=0.5,variant=paper",
            ModelArgument("A", "a/conf.py", "k=1/m.pth", pool="last", top_k=0.5, variant="paper"),
        ),
        ("open_clip:ViT-B-16//w/x.pt", ModelArgument("open_clip:ViT-B-16//w/x.pt", "open_clip:ViT-B-16//w/x.pt")),
        ("CLIP=open_clip:ViT-B-16@w/x.pt,pool=cls", ModelArgument("CLIP", "open_clip:ViT-B-16", "w/x.pt", pool="cls")),
    ],
)
def test_a_text_is_taken_apart(text, expected):
    assert parse_model_argument(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a model is given as"),
        ("timm:x@", "a model is given as"),
        ("timm:x@w.pth,k=3", "unknown option 'k'.*known: pool, top_k, variant, seed"),
        ("timm:x@w.pth,pool=avg", "pool must be one of cls, mean, max, attention, last, got 'avg'"),
        ("timm:x@w.pth,top_k=3,top_k=99", "option 'top_k' stands twice"),
        ("timm:x@w.pth,top_k=half", "top_k must be a number of patches or a share such as 0.25, got 'half'$"),
        ("timm:x@w.pth,seed=1", "for random weights .@random. only"),
        ("timm:x@random,seed=-1", "seed must be a whole number.*got '-1'$"),
    ],
)
def test_a_bad_text_says_what_is_wrong(text, message):
    with pytest.raises(ValueError, match=message):
        parse_model_argument(text)


def test_names_must_differ():
    with pytest.raises(ValueError, match=r"two models are called 'a/last'; give them names"):
        parse_model_arguments(["timm:x@a/last.pth", "timm:y@a/last.pth"])


def test_random_weights_follow_the_seed_and_leave_the_generator_alone():
    state = torch.random.get_rng_state()
    first, same, other = (parse_model_argument(f"torchvision:resnet18@random,seed={s}").load() for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.checkpoint_sha256 is None
    assert torch.equal(first.model.conv1.weight, same.model.conv1.weight)
    assert not torch.equal(first.model.conv1.weight, other.model.conv1.weight)


def test_a_model_without_weights_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"model 'A': no weights for 'torchvision:resnet18'"):
        parse_model_argument("A=torchvision:resnet18").load()
    with pytest.raises(FileNotFoundError, match=r"model 'A': .*missing\.pth"):
        parse_model_argument(f"A=torchvision:resnet18@{tmp_path / 'missing.pth'}").load()


def test_a_convnet_of_seven_classes(tmp_path):
    """Built for the classes of its file; votes come from its own selection."""
    path = tmp_path / "net.pth"
    torch.save(torchvision.models.mobilenet_v2(num_classes=7).state_dict(), path)
    trained = load_trained_model("torchvision:mobilenet_v2", path)
    assert trained.num_classes == 7
    assert trained.model(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    with pytest.raises(ValueError, match=r"7 classes, the model 5: .*num_classes=7"):
        load_checkpoint(torchvision.models.mobilenet_v2(num_classes=5), path)
    last = parse_model_argument(f"torchvision:mobilenet_v2@{path},pool=last,top_k=5,variant=paper").load()
    for model, top_k, variant in ((trained, 1, "release"), (last, 5, "paper")):
        assert (model.selection().top_k, model.selection().variant) == (top_k, variant)
    assert last.selection(top_k=0.5).top_k == 0.5


CLASSIFIERS = {
    "torchvision:vit_b_32": "heads.head",
    "torchvision:resnet18": "fc",
    "torchvision:densenet121": "classifier",
    "torchvision:mobilenet_v2": "classifier.1",
    "torchvision:mobilenet_v3_small": "classifier.3",
    "torchvision:convnext_tiny": "classifier.2",  # classifier.0 is a norm
    "torchvision:alexnet": "classifier.6",
    "torchvision:squeezenet1_1": "classifier.1",  # a convolution
    "timm:vit_tiny_patch16_224": "head",
    "timm:convnext_atto": "head.fc",
    "timm:efficientnet_lite0": "classifier",
    "timm:inception_v4": "last_linear",
    "timm:inception_resnet_v2": "classif",
    "timm:inception_next_atto": "head.fc2",
    "timm:convformer_s18": "head.fc.fc2",
    "timm:repvit_m0_9": "head.head.l",
    "timm:efficientvit_b0": "head.classifier.4",
    "timm:efficientvit_m0": "head.linear",
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_classifier_is_found(name):
    library, arch = name.split(":")
    make = torchvision.models.get_model if library == "torchvision" else timm.create_model
    with torch.device("meta"):
        weights = make(arch, num_classes=7).state_dict()
    expected = CLASSIFIERS[name] + ".weight"
    assert find_classifier(weights) == expected
    assert weights[expected].shape[0] == 7
    assert find_classifier({f"model.{key}": value for key, value in weights.items()}) == f"model.{expected}"


def test_a_backbone_has_none(tmp_path):
    with torch.device("meta"):
        assert find_classifier(torchvision.models.mobilenet_v2().features.state_dict()) is None
    torch.save({"teacher": timm.create_model("test_vit", num_classes=0).state_dict()}, tmp_path / "backbone.pth")
    trained = load_trained_model("timm:test_vit", tmp_path / "backbone.pth")
    assert (trained.num_classes, trained.model.num_classes) == (None, 0)
    assert (trained.preprocessing.crop, trained.preprocessing.resize) == (160, 168)


# Specs


def test_torchvision():
    model = build_model("torchvision:vit_b_32", num_classes=7, image_size=64)
    assert not model.training
    assert (model.image_size, model.heads.head.out_features) == (64, 7)
    assert preprocessing_of("torchvision:vit_b_32", model) == Preprocessing(resize=73, crop=64)
    assert preprocessing_of("torchvision:resnet18", torch.nn.Identity()) == Preprocessing()
    assert build_model("torchvision:squeezenet1_1", num_classes=3, image_size=64).num_classes == 3


def test_timm():
    model = build_model("timm:test_vit", num_classes=5, image_size=64)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    found = preprocessing_of("timm:test_vit", model, image_size=64, resize=64)
    assert found == Preprocessing((0.5,) * 3, (0.5,) * 3, 64, 64, "bicubic")
    assert build_model("timm:test_resnet", num_classes=0, image_size=64).num_classes == 0


@pytest.mark.parametrize("host", ["timm:test_vit", "torchvision:vit_b_32"])
def test_a_vit_has_the_size_of_its_weights_until_another_is_asked_for(host, tmp_path):
    """A position embedding of another grid is that of the library's own resizing."""
    trained, path = build_model(host, num_classes=5, image_size=128), tmp_path / "w.pth"
    save_checkpoint(path, {"model": {f"model.{name}": tensor for name, tensor in trained.state_dict().items()}})
    is_timm, ratio = host.startswith("timm"), {"timm:test_vit": 0.95, "torchvision:vit_b_32": 224 / 256}[host]
    images = torch.rand(1, 3, 192, 192)
    for asked, side in ((None, 128), (128, 128), (192, 192)):
        loaded = load_trained_model(host, path, image_size=asked)
        assert (loaded.preprocessing.crop, loaded.preprocessing.resize) == (side, round(side / ratio - 0.5 * is_timm))
        if side == 128:
            assert torch.equal(loaded.model(images[..., :128, :128]), trained(images[..., :128, :128]))
    if is_timm:
        expected = resample_abs_pos_embed(trained.pos_embed, [12, 12], [8, 8], trained.num_prefix_tokens)
        assert torch.equal(loaded.model.pos_embed, expected)
    else:
        expected = interpolate_embeddings(192, 32, trained.state_dict())["encoder.pos_embedding"]
        assert torch.equal(loaded.model.encoder.pos_embedding, expected)
    assert dense_forward(loaded.model, images).grid_hw == ((12, 12) if is_timm else (6, 6))


def test_pretrained_is_what_timm_fetches(monkeypatch, tmp_path):
    """Which the network of this test is: the weights are there, or there is none."""
    fetched, create = timm.create_model("test_vit", num_classes=5), timm.create_model

    def download(name, pretrained, **kwargs):
        model = create(name, num_classes=5, **kwargs)
        if pretrained:
            model.load_state_dict(fetched.state_dict())
        return model

    monkeypatch.setattr(timm, "create_model", download)
    loaded = parse_model_argument("timm:test_vit.r160_in1k@pretrained").load()
    safetensors.torch.save_file(fetched.state_dict(), tmp_path / "file.safetensors")
    digest = file_sha256(tmp_path / "file.safetensors")[:16]
    assert torch.equal(loaded.model.head.weight, fetched.head.weight)
    assert (loaded.num_classes, loaded.checkpoint_sha256, loaded.preprocessing.crop) == (5, digest, 160)

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    for text, message in (
        (
            "A=timm:test_vit@pretrained",
            r"'A': timm cannot .* \(no route to host\); .*: timm:test_vit@<file>$",
        ),
        ("timm:test_vit.r160_in2k@pretrained", "'test_vit.r160_in2k'; close ones: test_vit"),
        ("torchvision:vit_b_16@pretrained", r"only timm:<name>@pretrained.*torchvision:vit_b_16@<file>"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_model_argument(text).load()


def test_open_clip_file_is_loaded(tmp_path, monkeypatch):
    """A file that has the name of one of open_clip's tags is the file."""
    monkeypatch.chdir(tmp_path)
    model = build_model("open_clip:ViT-S-32-alt", image_size=64)
    torch.nn.init.constant_(model.logit_scale, 1.5)
    torch.save(model.state_dict(), "weights.pt")
    again = load_trained_model(f"open_clip:ViT-S-32-alt/{tmp_path}/weights.pt", None, image_size=64).model
    assert again.logit_scale.item() == 1.5
    found = preprocessing_of("open_clip:ViT-S-32-alt", again)
    assert (found.resize, found.crop, found.interpolation) == (64, 64, "bicubic")
    Path("weights.pt").rename("openai.pt")
    with pytest.raises(ValueError, match=r"QuickGELU.*openai in the file's name"):
        load_trained_model("open_clip:ViT-S-32-alt/openai.pt", None, image_size=64)


CONFIG = """
from detectron2.config import LazyCall as L
from torch import nn
from torchvision.models import VisionTransformer
from last_vit.data.transforms import EvalTransform
model = L(VisionTransformer)(image_size=32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32)
train = dict(lr=0.1, steps=[1, 2])
"""
TRANSFORM = "dataloader = dict(test=dict(dataset=dict(transform=L({}))))\n"


@pytest.fixture
def config(tmp_path):
    pytest.importorskip("detectron2")
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    return str(path)


def test_config(config):
    assert build_model(config)(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)
    model = build_model(config, opts=["model.hidden_dim=32", "model.num_classes=4"])  # num_classes: a parameter
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 4)
    assert preprocessing_of(config, model, image_size=32, resize=36) == Preprocessing(resize=36, crop=32)


def test_config_transform_is_used(config):
    path, model = Path(config), build_model(config)
    path.write_text(CONFIG + TRANSFORM.format("nn.Identity)("))
    with pytest.raises(ValueError, match="EvalTransform"):
        preprocessing_of(config, model)
    path.write_text(CONFIG + TRANSFORM.format("EvalTransform)(resize=72, crop=64, mean=(0.1, 0.2, 0.3), std=(1, 1, 1)"))
    expected = Preprocessing((0.1, 0.2, 0.3), (1, 1, 1), 72, 64, "bilinear")
    assert preprocessing_of(config, model) == expected
    path.write_text("train = dict(lr=0.1)\n")
    with pytest.raises(ValueError, match="no 'model'; it defines train"):
        build_model(config)


@pytest.mark.parametrize(
    ("spec", "opts", "error", "match"),
    [
        ("vit_b_16", (), ValueError, "timm:<name>.*did you mean torchvision:vit_b_16$"),
        ("vit_tiny_patch16_224.x", (), ValueError, r"did you mean timm:vit_tiny_patch16_224\.x$"),
        ("timm:", (), ValueError, "timm:<name>"),
        ("torchvision:vit_b16", (), ValueError, "vit_b_16"),
        ("timm:vit_smal_patch16_224", (), ValueError, "vit_small_patch16_224"),
        ("open_clip:ViT-B16", (), ValueError, "ViT-B-16"),
        ("nowhere/conf.py", (), FileNotFoundError, "no config file"),
        ("timm:test_vit", ["a=1"], ValueError, r"for a <config>\.py"),
    ],
)
def test_bad_specs(spec, opts, error, match):
    with pytest.raises(error, match=match):
        build_model(spec, opts=opts)


@pytest.mark.parametrize(("name", "patch"), [("vitamin_small_224", 16), ("vit_tiny_r_s16_p8_224", 32)])
def test_sizes_are_told_by_the_patches_of_the_network(name, patch):
    """Its convolutions and patches together, not what timm makes of a size that does not fit."""
    with pytest.raises(ValueError, match=f"multiple of the patch size {patch}, got 100 pixels"):
        parse_model_argument(f"timm:{name}@random").load(100)


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("model.hiden_dim=1", "did you mean model.hidden_dim"),
        ("modle.hidden_dim=1", "did you mean model"),
        ("train.steps.2=1", "train.steps has 0, 1"),
        ("train.lr.x=1", "train.lr has no keys"),
        ("model.hidden_dim", "key=value"),
        ("train.lr=[1", "cannot apply"),
        ("train.lr=null", "train.lr must be of type float"),
        ("model.hidden_dim=null", "model.hidden_dim must be of type int"),
    ],
)
def test_bad_overrides(config, override, match):
    with pytest.raises(ValueError, match=match):
        build_model(config, opts=[override])


def test_good_overrides(config):
    """Also null, where the call takes none: torch's DataLoader has no sampler unless one is given."""
    from detectron2.config import LazyCall

    from last_vit.lazy_config import apply_overrides, load_file

    cfg = load_file(config)
    cfg.loader = LazyCall(DataLoader)(dataset=[1, 2], num_workers=0, sampler="${train.lr}")
    cfg = apply_overrides(cfg, ["train.lr=0.5", "train.steps.1=7", "model.dropout=0.1", "loader.sampler=null"])
    assert (cfg.train.lr, cfg.train.steps[1], cfg.model.dropout, cfg.loader.sampler) == (0.5, 7, 0.1, None)
    with pytest.raises(ValueError, match="must be of type int"):
        apply_overrides(cfg, ["loader.num_workers=null"])
