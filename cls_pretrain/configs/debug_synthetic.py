"""Debug twin: a two-layer ViT on synthetic images, seconds on a CPU, no data needed. Its numbers mean nothing.

python cls_pretrain/lazy_train.py --config-file cls_pretrain/configs/debug_synthetic.py
"""

from detectron2.config import LazyCall as L

from last_vit.data.synthetic import SyntheticObjects

from ..conf import dataloader, evaluation, lr_multiplier, model, optimizer, train

model.model.update(image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=8)
dataloader.train.dataset.transform.update(size=32, scale=(0.35, 1.0))
dataloader.test.dataset.transform.update(resize=32, crop=32)
for split, num_images in (("train", 256), ("test", 60)):
    dataloader[split].dataset = L(SyntheticObjects)(
        num_images=num_images,
        split="train" if split == "train" else "val",
        image_size=32,
        num_classes=8,
        seed=0,
        transform=dataloader[split].dataset.transform,
    )
    dataloader[split].update(batch_size=16, num_workers=0)
train.update(output_dir="output/debug", max_iter=20, eval_period=10, log_period=5)
train.checkpointer.update(period=5, max_to_keep=3)
