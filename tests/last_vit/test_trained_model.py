"""A trained model is built for the classes that its weights have, whatever its classifier is called."""

import pytest
import timm
import torch
import torchvision

from last_vit.checkpoint import find_classifier, load_checkpoint
from last_vit.models import load_trained_model

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
