"""ViT-B/16, the paper's recipe (Tab. 11): conf.py with 2000 warm-up steps from zero, in bfloat16, with Point-in-Box.

    python cls_pretrain/lazy_train.py --config-file cls_pretrain/configs/vitb16_in1k.py --num-gpus 8 \\
        model.pool=last model.top_k=7 dataloader.train.dataset.root=/path/to/imagenet

Batch 4096 (8 GPUs x 512), 100 epochs; time not measured here.
Paper: Point-in-Box 42.7 with model.pool=cls, 55.1 with LaSt.
"""

from ..conf import dataloader, evaluation, lr_multiplier, model, optimizer, train

lr_multiplier.warmup_length = 2000 / 31278
lr_multiplier.warmup_factor = 0.0
dataloader.test.dataset.boxes = True
optimizer.fused = True
train.bf16 = True
train.output_dir = "output/vitb16_in1k"
