"""ViT-B/16 with 4 register tokens (paper tables 1 and 3, "+Register"): as vitb16_in1k.py, CLS.

    python cls_pretrain/lazy_train.py --config-file cls_pretrain/configs/vitb16_registers_in1k.py --num-gpus 8 \\
        dataloader.train.dataset.root=/path/to/imagenet

The number of registers is that of Darcet et al.; the paper does not say its own.
Paper: Point-in-Box 41.5 (42.7 without registers), no high norms.
"""

from .vitb16_in1k import dataloader, evaluation, lr_multiplier, model, optimizer, train

model.pool = "cls"
model.num_registers = 4
train.output_dir = "output/vitb16_registers_in1k"
