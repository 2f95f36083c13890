"""The cure on GPUs: a pretrained ViT-S/16 fine-tuned on ImageNet-1k at 224 px, its head kept.

    python cls_pretrain/lazy_train.py --config-file cls_pretrain/configs/finetune_vit_small.py --num-gpus 8 \\
        model.init=timm:vit_small_patch16_224.augreg_in21k_ft_in1k@/path/to/file.safetensors \\
        model.pool=last model.top_k=0.5 dataloader.train.dataset.root=/path/to/imagenet

Batch 1024 (8 GPUs x 128), 10 epochs (12,511 iterations), layer decay 0.75, bfloat16, compiled. Not measured here.
"""

from last_vit.command_line import cores_at_hand

from .finetune_vit_tiny import dataloader, evaluation, lr_multiplier, model, optimizer, train

model.update(init="timm:vit_small_patch16_224.augreg_in21k_ft_in1k@pretrained", num_classes=None, image_size=None)
optimizer.params.layer_decay = 0.75
optimizer.fused = True
dataloader.train.dataset.transform.train_scale = (0.08, 1.0)
dataloader.train.update(batch_size=128, num_workers=cores_at_hand(most=12))
dataloader.test.dataset.transform.resize = None  # the model's own
dataloader.test.num_workers = cores_at_hand(most=12)
train.update(output_dir="output/finetune_vit_small", max_iter=12511, eval_period=2502, compile=True)
train.checkpointer.period = 1251
