"""Mask R-CNN with a ViT-Ti/16 on a small part of COCO ("coco-mini", 341 + 144 images), on a CPU.

    python ov_detection/lazy_train.py --config-file ov_detection/configs/coco/coco_mini.py model.frozen=True \\
        model.init=timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k@/path/to/file.safetensors

A frozen backbone is a probe of its patches: heads alone, each image's features computed once; any model text will do,
timm:vit_tiny_patch16_224@random is the control. model.frozen=False trains all of it, with windows. 224 px, narrow
heads, no augmentation; six epochs of the probe take some two minutes of one core. Results: docs/results.md.
"""

from detectron2.config import LazyCall as L
from ov_data import OvImageSet, build_ov_test_loader

from ..common.mask_rcnn import dataloader, evaluation, lr_multiplier, model, optimizer, train

model.update(square_size=224, channels=64, cache_images=600, scale_factors=[2.0, 1.0, 0.5])
model.net.update(embed_dim=192, num_heads=3, window_size=7, drop_path_rate=0.0)
model.rpn.update(num_convs=1, anchor_size=4.0, batch_size_per_image=64)
model.rpn.update(pre_nms_topk=[300, 300], post_nms_topk=[100, 100])
model.roi_heads.update(batch_size_per_image=16, fc_width=256, num_convs=1, conv_width=32, canonical_box=56)
for split in ("train", "test"):
    name = f"{'train' if split == 'train' else 'val'}2017"
    dataloader[split].dataset.json_file = f"data/coco-mini/annotations/instances_{name}.json"
    dataloader[split].dataset.image_root = f"data/coco-mini/{name}"
    dataloader[split].update(batch_size=4, num_workers=0)
dataloader.train.dataset.update(augment=False, keep=True)
_keys = ("json_file", "image_root", "size", "max_images", "antialias", "novel")
_same = {key: f"${{dataloader.train.dataset.{key}}}" for key in _keys}
dataloader.seen = L(build_ov_test_loader)(dataset=L(OvImageSet)(train=False, **_same), batch_size=4, num_workers=0)
evaluation.dataset = "coco-mini val2017"
optimizer.lr = 1e-3
lr_multiplier.warmup_length = 0.05
train.update(output_dir="output/coco_mini_vitdet_ti", epochs=6.0, eval_epochs=0.0, checkpoint_epochs=2.0)
train.update(lr_batch_size=0, bf16=False, clip_grad_norm=1.0, best_metric="")
train.checkpointer.max_to_keep = 1
