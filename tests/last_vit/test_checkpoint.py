"""Loading is strict: what does not fit fails with a text that names it, and leaves the model as it was."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_parts import Holder, prefixed, randomised, saved
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

from last_vit.checkpoint import check_finite, load_checkpoint, load_strict


def torchvision_vit(num_classes: int = 5, hidden_dim: int = 16) -> TorchvisionViT:
    size = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "mlp_dim": 32}
    return randomised(TorchvisionViT(**size, hidden_dim=hidden_dim, num_classes=num_classes))


def timm_vit(num_classes: int = 0) -> TimmViT:
    return randomised(
        TimmViT(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2, num_classes=num_classes)
    )


def test_wrong_architecture_lists_both_sides_and_leaves_the_model_alone(tmp_path: Path) -> None:
    target = torchvision_vit()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    path = saved(tmp_path / "mlp.pth", nn.Sequential(*(nn.Linear(4, 4) for _ in range(6))).state_dict())
    expected = (
        r"(?s)mlp\.pth: .*VisionTransformer: 0 of its 32 .*missing.*, 32: class_token.*unexpected.*, 12: 0\.weight"
    )
    with pytest.raises(ValueError, match=expected) as error:
        load_checkpoint(target, path)
    assert "and 24 more" in str(error.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())


def test_a_partial_match_leaves_the_model_alone() -> None:
    target = torchvision_vit()
    before = target.class_token.clone()
    weights = torchvision_vit().state_dict()
    del weights["encoder.ln.bias"]
    with pytest.raises(ValueError, match=r"missing.*, 1: encoder\.ln\.bias"):
        load_strict(target, weights)
    assert torch.equal(before, target.class_token)


def test_other_width_lists_shapes() -> None:
    with pytest.raises(ValueError, match=r"other shape.*class_token \[1, 1, 32\] -> \[1, 1, 16\].* and \d+ more"):
        load_strict(torchvision_vit(), torchvision_vit(hidden_dim=32).state_dict())


def test_other_resolution_names_the_position_embedding() -> None:
    weights = torchvision_vit().state_dict()
    weights["encoder.pos_embedding"] = torch.zeros(1, 65, 16)
    with pytest.raises(ValueError, match="pos_embedding differs: build the model for the checkpoint's image"):
        load_strict(torchvision_vit(), weights)


def test_unknown_prefix_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "vit.pth", prefixed("encoder.net.", timm_vit().state_dict()))
    with pytest.raises(ValueError, match=r"behind the unknown prefix 'encoder\.net\.'"):
        load_checkpoint(timm_vit(), path)


@pytest.mark.parametrize("build", [torchvision_vit, timm_vit])
@pytest.mark.parametrize("wrapped", [True, False])
def test_wrong_num_classes_names_both_numbers(tmp_path: Path, build: Callable[..., nn.Module], wrapped: bool) -> None:
    path = saved(tmp_path / "vit.pth", build(num_classes=7).state_dict())
    target = Holder(model=build(num_classes=5)) if wrapped else build(num_classes=5)
    with pytest.raises(ValueError, match="7 classes, the model 5: build it with num_classes=7"):
        load_checkpoint(target, path)


def test_half_precision_weights_are_cast() -> None:
    source, target = timm_vit(), timm_vit()
    load_strict(target, {name: tensor.half() for name, tensor in source.state_dict().items()})
    assert target.cls_token.dtype == torch.float32
    torch.testing.assert_close(target.cls_token, source.cls_token, atol=1e-3, rtol=1e-3)


def test_check_finite_names_the_tensor() -> None:
    weights = timm_vit().state_dict()
    check_finite({**weights, "steps": torch.tensor(3)})
    weights["blocks.1.norm1.bias"][3] = float("nan")
    with pytest.raises(FloatingPointError, match=r"'blocks\.1\.norm1\.bias' has 1 of 16"):
        check_finite(weights)
