"""A model on the command line, name, spec, weights and pooling in one text, built for the classes of its weights."""

import pytest
import timm
import torch
import torchvision

from last_vit.checkpoint import find_classifier, load_checkpoint
from last_vit.models import ModelArgument, load_trained_model, parse_model_argument, parse_model_arguments


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("torchvision:resnet50@random", ModelArgument("resnet50, random", "torchvision:resnet50", seed=0)),
        ("timm:x@random,seed=7", ModelArgument("x, random", "timm:x", seed=7)),
        ("timm:x.dino@runs/a/last.pth", ModelArgument("a/last", "timm:x.dino", "runs/a/last.pth")),
        (
            "LaSt K=1=timm:x@k=1/last.pth,top_k=1",
            ModelArgument("LaSt K=1", "timm:x", "k=1/last.pth", top_k=1),
        ),
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
        ("timm:x@w.pth,top_k=many", "top_k must be a number"),
        ("timm:x@w.pth,seed=1", "for random weights .@random. only"),
        ("timm:x@random,seed=-1", "seed must be a whole number"),
    ],
)
def test_a_bad_text_says_what_is_wrong(text, message):
    with pytest.raises(ValueError, match=message):
        parse_model_argument(text)


def test_names_must_differ():
    with pytest.raises(ValueError, match=r"two models are called 'a/last'; give them names"):
        parse_model_arguments(["timm:x@a/last.pth", "timm:y@a/last.pth"])


def test_random_weights_follow_the_seed_and_leave_the_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, same, other = (parse_model_argument(f"torchvision:resnet18@random,seed={s}").load() for s in (0, 0, 1))
    assert torch.rand(1) == expected
    assert first.checkpoint_sha256 is None
    assert torch.equal(first.model.conv1.weight, same.model.conv1.weight)
    assert not torch.equal(first.model.conv1.weight, other.model.conv1.weight)


def test_a_model_without_weights_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"model 'A': no weights for 'torchvision:resnet18'"):
        parse_model_argument("A=torchvision:resnet18").load()
    with pytest.raises(FileNotFoundError, match=r"model 'A': .*missing\.pth"):
        parse_model_argument(f"A=torchvision:resnet18@{tmp_path / 'missing.pth'}").load()


def test_votes_come_from_the_models_own_selection(tmp_path):
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), tmp_path / "w.pth")
    plain = parse_model_argument(f"torchvision:resnet18@{tmp_path / 'w.pth'}").load()
    last = parse_model_argument(f"torchvision:resnet18@{tmp_path / 'w.pth'},pool=last,top_k=5,variant=paper").load()
    assert (plain.selection().top_k, plain.selection().variant) == (1, "release")
    assert (last.selection().top_k, last.selection().variant) == (5, "paper")
    assert last.selection(top_k=0.5).top_k == 0.5


CLASSIFIERS = {
    "torchvision:vit_b_32": "heads.head",
    "torchvision:resnet18": "fc",
    "torchvision:densenet121": "classifier",
    "torchvision:mobilenet_v2": "classifier.1",
    "torchvision:mobilenet_v3_small": "classifier.3",
    "torchvision:efficientnet_b0": "classifier.1",
    "torchvision:convnext_tiny": "classifier.2",  # classifier.0 is a norm
    "torchvision:vgg11": "classifier.6",
    "torchvision:alexnet": "classifier.6",
    "torchvision:squeezenet1_1": "classifier.1",  # a convolution
    "timm:vit_tiny_patch16_224": "head",
    "timm:convnext_atto": "head.fc",
    "timm:efficientnet_lite0": "classifier",
    "timm:inception_v4": "last_linear",
    "timm:inception_resnet_v2": "classif",
    "timm:inception_next_atto": "head.fc2",
    "timm:poolformer_s12": "head.fc",
    "timm:convformer_s18": "head.fc.fc2",
    "timm:repvit_m0_9": "head.head.l",
    "timm:csatv2": "head.fc",
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


def test_a_backbone_has_none():
    with torch.device("meta"):
        assert find_classifier(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()) is None
        assert find_classifier(torchvision.models.mobilenet_v2().features.state_dict()) is None


def test_a_convnet_of_seven_classes(tmp_path):
    torch.save(torchvision.models.mobilenet_v2(num_classes=7).state_dict(), tmp_path / "net.pth")
    trained = load_trained_model("torchvision:mobilenet_v2", tmp_path / "net.pth")
    assert trained.num_classes == 7
    assert trained.model(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    with pytest.raises(ValueError, match=r"7 classes, the model 5: .*num_classes=7"):
        load_checkpoint(torchvision.models.mobilenet_v2(num_classes=5), tmp_path / "net.pth")
