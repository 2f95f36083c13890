"""ViT-S/16, the paper's recipe (Tab. 11): as vitb16_in1k.py with 500 steps of warm-up.

    python cls_pretrain/lazy_train.py --config-file cls_pretrain/configs/vits16_in1k.py --num-gpus 8 \\
        model.pool=cls dataloader.train.dataset.root=/path/to/imagenet

Paper (Tab. 2, no window attention): top-1 72.3, Point-in-Box 50.1 with CLS.
"""

from .vitb16_in1k import dataloader, evaluation, lr_multiplier, model, optimizer, train

model.model.hidden_dim = 384
model.model.num_heads = 6
model.model.mlp_dim = 1536
lr_multiplier.warmup_length = 500 / 31278
train.output_dir = "output/vits16_in1k"
