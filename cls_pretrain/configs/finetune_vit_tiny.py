"""The cure on two cores: a pretrained ViT-Ti/16 fine-tuned on Tiny-ImageNet-100 at 112 px (7 x 7 patches).

    python cls_pretrain/lazy_train.py --config-file cls_pretrain/configs/finetune_vit_tiny.py \\
        model.init=timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k@/path/to/file.safetensors \\
        model.pool=last model.top_k=0.5 dataloader.train.dataset.root=/path/to/tiny-imagenet-100

Batch 64, one epoch of 25,000 images; about ten minutes on one core in bfloat16. Results: docs/results.md.
"""

from detectron2.config import LazyCall as L
from trained_net import TrainedNet, layer_decay_params, own_transform

from ..conf import dataloader, evaluation, lr_multiplier, optimizer, train

model = L(TrainedNet)(
    init="timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k@pretrained",
    num_classes=100,
    image_size=112,
    pool="last",
    top_k=1,
)
optimizer.update(lr=2e-4, betas=(0.9, 0.999), weight_decay=0.05)
optimizer.params = L(layer_decay_params)(
    lr="${optimizer.lr}", weight_decay="${optimizer.weight_decay}", layer_decay=1.0
)
lr_multiplier.warmup_length = 0.05
_own = dict(init="${model.init}", size="${model.image_size}")
dataloader.train.dataset.transform = L(own_transform)(train_scale=(0.35, 1.0), **_own)
dataloader.train.update(batch_size=64, num_workers=0)
dataloader.test.dataset.update(transform=L(own_transform)(resize="${model.image_size}", **_own), boxes=True)
dataloader.test.update(batch_size=128, num_workers=0)
train.update(output_dir="output/finetune_vit_tiny", max_iter=391, eval_period=0, clip_grad_norm=1.0, bf16=True)
train.checkpointer.update(period=100, max_to_keep=1)
