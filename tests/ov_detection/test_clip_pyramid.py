"""Upsamplers and FPN against a plain float64 version, for patches of 16 and 14 pixels and images of any shape."""

import pytest
import torch
from fvit.clip_pyramid import FViTBackbone
from fvit_parts import StubClip
from torch.nn import functional as F


def normed(x, weights, prefix):
    """A batch norm in eval mode."""
    mean, var, scale, shift = (
        weights[f"{prefix}.{name}"][:, None, None] for name in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * scale + shift


def plain_pyramid(blocks, weights):
    """Four block maps -> p2 to p6 as FACTS describe them."""
    up = "fpn.bottom_up."
    x = F.conv_transpose2d(blocks[0], weights[f"{up}level0.0.weight"], weights[f"{up}level0.0.bias"], stride=2)
    x = F.gelu(normed(x, weights, f"{up}level0.1"))
    levels = [F.conv_transpose2d(x, weights[f"{up}level0.3.weight"], weights[f"{up}level0.3.bias"], stride=2)]
    levels += [F.conv_transpose2d(blocks[1], weights[f"{up}level1.0.weight"], weights[f"{up}level1.0.bias"], stride=2)]
    levels += [blocks[2], F.max_pool2d(blocks[3], 2)]
    out, above = {}, None
    for place in (5, 4, 3, 2):
        name = f"fpn.fpn_lateral{place}"
        lateral = normed(F.conv2d(levels[place - 2], weights[f"{name}.weight"]), weights, f"{name}.norm")
        if above is not None:
            lateral = lateral + above.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        above, name = lateral, f"fpn.fpn_output{place}"
        out[f"p{place}"] = normed(F.conv2d(lateral, weights[f"{name}.weight"], padding=1), weights, f"{name}.norm")
    out["p6"] = out["p5"][:, :, ::2, ::2]
    return out


@pytest.mark.parametrize(("patch_size", "image_hw"), [(16, (96, 64)), (14, (84, 140))])
def test_against_float64(patch_size, image_hw):
    torch.manual_seed(0)
    backbone = FViTBackbone(StubClip(patch_size=patch_size), channels=12).eval()
    for name, tensor in backbone.state_dict().items():
        if "running" in name or ".norm." in name:
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    images = torch.randn(2, 3, *image_hw)
    with torch.no_grad():
        maps = backbone(images)
        expected = plain_pyramid(
            [block.double() for block in backbone.clip(images).blocks],
            {name: tensor.double() for name, tensor in backbone.state_dict().items()},
        )
    assert list(maps) == ["p2", "p3", "p4", "p5", "p6", "dense"]
    for name, level in expected.items():
        torch.testing.assert_close(maps[name].double(), level, rtol=1e-4, atol=1e-4)
    assert list(backbone.train()(images)) == ["p2", "p3", "p4", "p5", "p6"]
    assert maps["dense"].shape == (2, 8, image_hw[0] // patch_size, image_hw[1] // patch_size)
