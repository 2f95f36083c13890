"""Frozen backbones from DINO's flags, and their features of a data set: each image once over all processes, cached.

A cache is <folder>/train.pth and <folder>/val.pth: {"of": what they are features of, "features": float32 [N, D]}. It is
read back only for the same weights, images and preprocessing.
"""

import argparse
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from dino_backbone import build_backbone
from eval_options import RANDOM
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from last_vit.adapters import find_adapter
from last_vit.checkpoint import load_checkpoint, read_checkpoint, read_weights, save_checkpoint
from last_vit.data.imagenet import ImageNetDataset
from last_vit.data.loaders import process_share
from last_vit.dense import pooling_of
from last_vit.dino_vit import DinoVisionTransformer
from last_vit.evaluation import open_loader, write_record
from last_vit.models import TrainedModel, attach_trained_pooling
from last_vit.preprocessing import Preprocessing, check_whole_patches, trained_img_size
from last_vit.results import dataset_name
from last_vit.runtime import all_gather, rank, seeded_weights, world_size
from last_vit.token_pool import TokenPool

Reader = Callable[[nn.Module, Tensor], Tensor]
_IMAGE_SIZE = 224
_RANDOM_SEED = 0


def load_backbone(args: argparse.Namespace, image_size: int | None = None, resize: int | None = None) -> TrainedModel:
    """The backbone of `add_backbone_flags`, loaded strictly and pooled as it was trained, in eval mode on the CPU.

    Without `image_size` the centre crop is what a ViT's position embedding was made for, or 224 pixels; without
    `resize` the shorter side before it is 256 / 224 of the crop, as in DINO.
    """
    path, is_random = args.pretrained_weights, args.pretrained_weights == RANDOM
    # "teacher" is what is taken by default where there is one; released backbones have no such entry
    key = None if args.checkpoint_key == "teacher" else args.checkpoint_key
    try:
        checkpoint = None if is_random else read_weights(path, key)
    except ValueError as error:
        raise ValueError(f"--pretrained_weights {path}, --checkpoint_key {args.checkpoint_key}: {error}") from error
    trained_size = trained_img_size({} if is_random else checkpoint.weights) or _IMAGE_SIZE
    with seeded_weights(_RANDOM_SEED):
        model, _ = build_backbone(args.arch, args.patch_size, trained_size)
    if not is_random:
        load_checkpoint(model, checkpoint)
    source = attach_trained_pooling(model, checkpoint, args.pooling, args.top_k, args.variant)
    preprocessing = Preprocessing(interpolation="bicubic").resized(image_size or trained_size, resize)
    if isinstance(model, DinoVisionTransformer):
        check_whole_patches(preprocessing.crop, args.patch_size)
    try:
        pooling = pooling_of(model)
    except ValueError:  # XCiT, to which nothing can be attached, pools in its own way
        pooling = {"pool": "host"}
    sha256 = None if is_random else checkpoint.sha256[:16]
    return TrainedModel(model.eval(), preprocessing, pooling, source, sha256)


def open_splits(
    args: argparse.Namespace, train_transform: Callable[[Any], Tensor], val_transform: Callable[[Any], Tensor]
) -> tuple[ImageNetDataset, ImageNetDataset]:
    """The labelled images of --data_path, train and val, which must have the same classes."""
    train = ImageNetDataset(args.data_path, "train", train_transform)
    val = ImageNetDataset(args.data_path, "val", val_transform)
    if train.classes != val.classes:
        only_train = sorted(set(train.classes) - set(val.classes))
        only_val = sorted(set(val.classes) - set(train.classes))
        raise ValueError(
            f"{train.folder} has {len(train.classes)} classes, {val.folder} {len(val.classes)}: only in train "
            f"{only_train[:3] or 'none'}, only in val {only_val[:3] or 'none'}; both splits need the same ones"
        )
    return train, val


def describe_backbone(args: argparse.Namespace, trained: TrainedModel) -> dict[str, Any]:
    """What decides a backbone's features of an image, as plain values: for results, caches and resuming."""
    return {
        "arch": args.arch,
        "patch_size": args.patch_size,
        "weights": trained.checkpoint_sha256 or f"random, seed {_RANDOM_SEED}",
        "checkpoint_key": args.checkpoint_key,
        "pooling": trained.pooling,
        **{f"input_{name}": value for name, value in asdict(trained.preprocessing).items()},
    }


def images_name(args: argparse.Namespace, trained: TrainedModel) -> str:
    """What results call the images that are scored, such as "imagenet val, 224 px"."""
    return f"{args.dataset_name or dataset_name(args.data_path, 'val')} val, {trained.preprocessing.crop} px"


def write_backbone_record(
    args: argparse.Namespace,
    trained: TrainedModel,
    table: str,
    metrics: Mapping[str, float],
    config: Mapping[str, Any],
    num_images: int,
    seconds: float,
    device: torch.device,
) -> None:
    """`write_record` for a backbone of DINO's flags, called after its weights' folder and file; says where it is."""
    path = Path(args.pretrained_weights)
    written = write_record(
        args,
        table,
        "/".join((*path.parent.parts[-1:], path.stem)),
        metrics,
        dataset=images_name(args, trained),
        n_images=num_images,
        config={**describe_backbone(args, trained), "pooling_source": trained.pooling_source, **config},
        checkpoint_sha256=trained.checkpoint_sha256,
        seconds=seconds,
        device=device,
    )
    print(f"written {written}")


def labels_digest(images: ImageNetDataset) -> str:
    """16 hex digits that tell one list of files and labels from another; pixels are not looked at."""
    digest = hashlib.sha256()
    for path, label in zip(images.image_paths, images.labels.tolist(), strict=True):
        digest.update(f"{Path(path).relative_to(images.folder).as_posix()} {label}\n".encode())
    return digest.hexdigest()[:16]


def layer_reader(model: nn.Module, num_blocks: int, with_patch_mean: bool) -> Reader:
    """What the linear classifier reads: the global tokens of a ViT's last n = `num_blocks` blocks.

    After each block the final norm is applied and the model's own pooling taken, oldest block first: the class token
    (DINO), for a model pooled with LaSt the LaSt token of that block's patches, else their mean: float32 [B, n * D].
    With the mean of the last block's patches it is [B, (n + 1) * D], where for n = 1 the two tokens alternate channel
    by channel, as in DINO, whose classifiers so fit. Other hosts give the token that they pool, alone.
    """
    if not isinstance(model, DinoVisionTransformer):
        if with_patch_mean:
            raise ValueError("--avgpool_patchtokens is for ViTs; other backbones give the one token that they pool")
        return lambda model, images: model(images).float()
    if num_blocks > len(model.blocks):
        raise ValueError(f"--n_last_blocks {num_blocks} is more than the {len(model.blocks)} blocks of this backbone")
    pool = find_adapter(model).attached(model) or TokenPool("cls")

    def read(model: nn.Module, images: Tensor) -> Tensor:
        layers = model.forward_intermediates(
            images, num_blocks, return_prefix_tokens=True, norm=True, output_fmt="NLC", intermediates_only=True
        )
        tokens = [pool(torch.cat((prefix, patches), dim=1), prefix.shape[1]) for patches, prefix in layers]
        if not with_patch_mean:
            return torch.cat(tokens, dim=1).float()
        mean = layers[-1][0].mean(dim=1)
        joined = torch.stack((tokens[0], mean), dim=2).flatten(1) if num_blocks == 1 else torch.cat((*tokens, mean), 1)
        return joined.float()

    return read


@torch.inference_mode()
def extract_features(
    trained: TrainedModel, images: Dataset, read: Reader, args: argparse.Namespace, device: torch.device
) -> Tensor:
    """What `read` gives for this process's share of a data set, in its order: float32 [share, F] on the CPU.

    Filled in place, so that memory holds it once. Features that are NaN or infinite are a ValueError.
    """
    side = trained.preprocessing.crop
    width = read(trained.model, torch.zeros(1, 3, side, side, device=device)).shape[1]
    features, done = torch.empty(len(process_share(len(images), rank())), width), 0
    for batch in open_loader(images, "features", args.batch_size_per_gpu, args.num_workers):
        found = read(trained.model, batch["image"].to(device, non_blocking=True)).cpu()
        if not torch.isfinite(found).all():
            raise ValueError("some features are NaN or infinite: the weights are damaged")
        features[done : done + len(found)] = found
        done += len(found)
    return features


def dump_features(folder: Path, split: str, of: Mapping[str, Any], features: Tensor) -> None:
    """Write the features [N, D] of all processes, and what they are `of`, atomically; in the main process only."""
    path = folder / f"{split}.pth"
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, {"of": dict(of), "features": features})
    print(f"written {path}")


def load_features(folder: Path, split: str, of: Mapping[str, Any], total: int) -> Tensor:
    """Read the N = `total` features of one split.

    A damaged file, or features of something else than `of`, is a ValueError that says in what they differ.
    """
    path = folder / f"{split}.pth"
    content = read_checkpoint(path)
    if not isinstance(content.get("of"), Mapping) or not isinstance(content.get("features"), Tensor):
        raise ValueError(f"{path} is no cache of --dump_features: it holds {', '.join(map(str, content))}")
    stored, features = content["of"], content["features"]
    different = differences({name: stored.get(name) for name in of}, of)
    if different or len(features) != total:
        raise ValueError(
            f"{path} holds other features ({different or f'{len(features)} rows'}): make them anew, --dump_features"
        )
    return features


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """In what a file's settings `there` are not those of this run, in words; empty where they agree."""
    return "; ".join(f"{name} {there[name]} there, {here[name]} here" for name in there if there[name] != here[name])


def gather_rows(rows: Tensor, total: int) -> Tensor:
    """Put the shares [share, F] of all processes together, [total, F]; every process must call this, and gets it."""
    if world_size() == 1:
        return rows
    shares = [process_share(total, process) for process in range(world_size())]
    padded = F.pad(rows, (0, 0, 0, max(map(len, shares)) - len(rows)))
    return torch.cat([part[: len(share)] for share, part in zip(shares, all_gather(padded), strict=True)])
