"""The cure on GPUs: a pretrained ViT-B/16, as finetune_vit_small.py with layer decay 0.65.

    python cls_pretrain/lazy_train.py --config-file cls_pretrain/configs/finetune_vit_base.py --num-gpus 8 \\
        model.init=timm:vit_base_patch16_224.augreg_in21k_ft_in1k@/path/to/file.safetensors \\
        model.pool=last model.top_k=0.5 dataloader.train.dataset.root=/path/to/imagenet

Batch 1024 (8 GPUs x 128), 10 epochs. Not measured here.
"""

from .finetune_vit_small import dataloader, evaluation, lr_multiplier, model, optimizer, train

model.init = "timm:vit_base_patch16_224.augreg_in21k_ft_in1k@pretrained"
optimizer.params.layer_decay = 0.65
train.output_dir = "output/finetune_vit_base"
