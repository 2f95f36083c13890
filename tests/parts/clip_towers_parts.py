"""Small image towers for the tests of dense CLIP features, and each of them written out plainly in float64."""

import math

import torch
from open_clip.model import VisionTransformer
from open_clip.timm_model import TimmModel
from open_clip.transformer import LayerNorm, QuickGELU
from timm.models.eva import Eva
from torch import Tensor, nn
from torch.nn import functional as F


def randomised(tower: nn.Module, seed: int = 0) -> nn.Module:
    """Norms near 1, everything else spread, so that no two blocks and no two channels are alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in tower.named_parameters():
            is_scale = weight.ndim == 1 and name.endswith(("weight", "gamma", "gamma_1", "gamma_2"))
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.25 + (1.0 if is_scale else 0.0))
    return tower.eval()


def native_tower(**changes) -> VisionTransformer:
    """32 x 32 pixels, 4 x 4 patches, width 16, 2 heads, 3 blocks with layer scale, embedding 12."""
    settings = {"width": 16, "layers": 3, "heads": 2, "mlp_ratio": 2.0, "output_dim": 12, "ls_init_value": 0.5}
    return randomised(VisionTransformer(32, 8, norm_layer=LayerNorm, act_layer=QuickGELU, **{**settings, **changes}))


def eva_tower(**changes) -> TimmModel:
    """EVA-02-CLIP as timm builds it (separate q, k, v, inner norms, SwiGLU, rotary), at 4 x 4 patches of width 16."""
    tower = TimmModel("test_vit", 12, image_size=32, pool="token", proj=None)  # small, and its trunk is replaced
    settings = {
        "img_size": 32, "patch_size": 8, "num_classes": 12, "global_pool": "token", "embed_dim": 16, "depth": 3,
        "num_heads": 2, "mlp_ratio": 2.0, "qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True,
        "scale_attn_inner": True, "use_rot_pos_emb": True, "ref_feat_shape": (6, 6),
    }  # fmt: skip
    tower.trunk = Eva(**{**settings, **changes})
    return randomised(tower)


def bicubic(grid: Tensor, size: tuple[int, int], scale: tuple[float, float]) -> Tensor:
    """[h, w, D] float64 -> [*size, D]: cubic convolution (a = -0.75) at (i + 0.5) * scale - 0.5, border repeated."""

    def kernel(x: float) -> float:
        x, a = abs(x), -0.75
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    def matrix(old: int, new: int, step: float) -> Tensor:
        weights = torch.zeros(new, old, dtype=torch.float64)
        for i in range(new):
            at = (i + 0.5) * step - 0.5
            for j in range(math.floor(at) - 1, math.floor(at) + 3):
                weights[i, min(max(j, 0), old - 1)] += kernel(at - j)
        return weights

    rows, columns = (matrix(old, new, step) for old, new, step in zip(grid.shape[:2], size, scale, strict=True))
    return torch.einsum("ih,jw,hwd->ijd", rows, columns, grid)


def attend(scores: Tensor, values: Tensor) -> Tensor:
    return scores.softmax(dim=-1) @ values


naclip_std = 5.0


def mix(kind: str, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int]) -> Tensor:
    """One head: q, k, v [1 + N, d] -> [1 + N, d], by the papers' formulas."""
    scale = q.shape[1] ** -0.5
    if kind == "vanilla":
        return attend(q @ k.T * scale, v)
    if kind == "sclip":
        return attend(q @ q.T * scale, v) + attend(k @ k.T * scale, v)
    if kind == "clearclip":
        return attend(q @ q.T * scale, v)
    if kind == "naclip":
        scores = k @ k.T * scale
        for i in range(grid[0] * grid[1]):
            for j in range(grid[0] * grid[1]):
                distance = (i // grid[1] - j // grid[1]) ** 2 + (i % grid[1] - j % grid[1]) ** 2
                scores[1 + i, 1 + j] += math.exp(-distance / (2 * naclip_std**2))
        return attend(scores, v)
    return v  # maskclip, fvit


def norm(x: Tensor, weights: dict[str, Tensor], name: str, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)


def patches_of(image: Tensor, kernel: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """[3, H, W] -> [h * w, D], patch by patch."""
    side = kernel.shape[2]
    grid = (image.shape[1] // side, image.shape[2] // side)
    cut = [
        (image[:, side * y : side * (y + 1), side * x : side * (x + 1)] * kernel).sum((1, 2, 3))
        for y in range(grid[0])
        for x in range(grid[1])
    ]
    return torch.stack(cut), grid


def positions_of(table: Tensor, grid: tuple[int, int], position: str) -> Tensor:
    """[1 + 16, D] of a 4 x 4 grid -> [1 + h * w, D]; "open_clip" for the native grid only."""
    if grid == (4, 4):
        return table
    guard = {"sclip": 0.1, "fvit": 0.0}[position]
    resized = bicubic(table[1:].reshape(4, 4, -1), grid, (4 / (grid[0] + guard), 4 / (grid[1] + guard)))
    return torch.cat([table[:1], resized.reshape(grid[0] * grid[1], -1)])


def plain_native(tower: nn.Module, image: Tensor, kind: str, position: str) -> tuple[Tensor, list[Tensor]]:
    """One image through the native tower -> dense [N, E], and each block's patch tokens [N, D]; float64."""
    w = {name: value.double() for name, value in tower.state_dict().items()}
    x, grid = patches_of(image.double(), w["conv1.weight"])
    x = torch.cat([w["class_embedding"][None], x]) + positions_of(w["positional_embedding"], grid, position)
    x, outputs, heads = norm(x, w, "ln_pre", 1e-5), [], 2
    depth = len(tower.transformer.resblocks)
    for i in range(depth):
        at, name = f"transformer.resblocks.{i}", kind if i == depth - 1 else "vanilla"
        qkv = norm(x, w, f"{at}.ln_1", 1e-5) @ w[f"{at}.attn.in_proj_weight"].T + w[f"{at}.attn.in_proj_bias"]
        q, k, v = (part.chunk(heads, dim=1) for part in qkv.chunk(3, dim=1))
        branch = torch.cat([mix(name, *parts, grid) for parts in zip(q, k, v, strict=True)], dim=1)
        branch = linear(branch, w, f"{at}.attn.out_proj") * w.get(f"{at}.ls_1.gamma", 1.0)
        if name in ("maskclip", "clearclip", "naclip"):
            x = branch
        else:
            x = x + branch
            hidden = linear(norm(x, w, f"{at}.ln_2", 1e-5), w, f"{at}.mlp.c_fc")
            hidden = hidden * torch.sigmoid(1.702 * hidden)
            x = x + linear(hidden, w, f"{at}.mlp.c_proj") * w.get(f"{at}.ls_2.gamma", 1.0)
        outputs.append(x[1:])
    return norm(x[1:], w, "ln_post", 1e-5) @ w["proj"], outputs


def rotate(x: Tensor, grid: tuple[int, int], reference: int) -> Tensor:
    """Rotary embedding of patches [N, d]: first half of the channels by row, second by column, neighbours paired."""
    out, quarter = x.clone(), x.shape[1] // 4
    for patch in range(len(x)):
        for axis, index in enumerate((patch // grid[1], patch % grid[1])):
            for band in range(quarter):
                angle = index / grid[axis] * reference * 10000 ** (-band / quarter)
                a = axis * 2 * quarter + 2 * band
                out[patch, a] = x[patch, a] * math.cos(angle) - x[patch, a + 1] * math.sin(angle)
                out[patch, a + 1] = x[patch, a + 1] * math.cos(angle) + x[patch, a] * math.sin(angle)
    return out


def plain_eva(tower: nn.Module, image: Tensor, kind: str, position: str) -> tuple[Tensor, list[Tensor]]:
    """As `plain_native`, for `eva_tower`."""
    w = {name.removeprefix("trunk."): value.double() for name, value in tower.state_dict().items()}
    x, grid = patches_of(image.double(), w["patch_embed.proj.weight"])
    x = torch.cat([w["cls_token"][0], x + w["patch_embed.proj.bias"]]) + positions_of(w["pos_embed"][0], grid, position)
    outputs, heads, depth = [], 2, len(tower.trunk.blocks)
    for i in range(depth):
        at, name = f"blocks.{i}", kind if i == depth - 1 else "vanilla"
        normed = norm(x, w, f"{at}.norm1", 1e-6)
        q, k, v = (linear(normed, w, f"{at}.attn.{part}_proj").chunk(heads, dim=1) for part in "qkv")
        q, k = ([torch.cat([head[:1], rotate(head[1:], grid, 6)]) for head in part] for part in (q, k))
        branch = torch.cat([mix(name, *parts, grid) for parts in zip(q, k, v, strict=True)], dim=1)
        branch = linear(norm(branch, w, f"{at}.attn.norm", 1e-6), w, f"{at}.attn.proj")
        if name in ("maskclip", "clearclip", "naclip"):
            x = branch
        else:
            x = x + branch
            normed = norm(x, w, f"{at}.norm2", 1e-6)
            hidden = F.silu(linear(normed, w, f"{at}.mlp.fc1_g")) * linear(normed, w, f"{at}.mlp.fc1_x")
            x = x + linear(norm(hidden, w, f"{at}.mlp.norm", 1e-6), w, f"{at}.mlp.fc2")
        outputs.append(x[1:])
    return linear(norm(x[1:], w, "norm", 1e-6), w, "head"), outputs
