"""Tiny-ImageNet (100 classes, 64 x 64 pixels) on a CPU: a 0.8M-parameter ViT with patches of 8 pixels (8 x 8).

    python cls_pretrain/lazy_train.py --config-file cls_pretrain/configs/tiny_imagenet.py \\
        model.pool=cls train.output_dir=output/tiny_cls dataloader.train.dataset.root=/path/to/tiny-imagenet-100

Batch 64, 6 epochs of 25,000 images; at most half an hour on one core. Results: docs/results.md.
"""

from ..conf import dataloader, evaluation, lr_multiplier, model, optimizer, train

model.model.update(image_size=64, patch_size=8, num_layers=4, num_heads=4, hidden_dim=128, mlp_dim=512, num_classes=100)
model.top_k = 8
lr_multiplier.warmup_length = 0.05
optimizer.weight_decay = 0.05
dataloader.train.dataset.transform.update(size=64, scale=(0.35, 1.0))
dataloader.train.update(batch_size=64, num_workers=1)
dataloader.test.dataset.transform.update(resize=64, crop=64)
dataloader.test.dataset.boxes = True
dataloader.test.update(batch_size=128, num_workers=1)
train.update(output_dir="output/tiny_imagenet", max_iter=2346, eval_period=782, clip_grad_norm=1.0)
train.checkpointer.update(period=391, max_to_keep=2)
