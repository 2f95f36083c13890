"""ViT-B/32 for the K table (paper Tab. 9): as vitb16_in1k.py with patches of 32 pixels (7 x 7).

    for top_k in 1 7 49; do
        python cls_pretrain/lazy_train.py --config-file cls_pretrain/configs/vitb32_in1k.py --num-gpus 8 \\
            model.top_k=$top_k train.output_dir=output/vitb32_k$top_k dataloader.train.dataset.root=/path/to/imagenet
    done                         # and model.pool=cls, model.pool=mean for the baselines

Paper, top-1: CLS 59.1, mean 64.3, K=1 64.6, K=7 64.8, K=49 64.9.
"""

from .vitb16_in1k import dataloader, evaluation, lr_multiplier, model, optimizer, train

model.model.patch_size = 32
train.output_dir = "output/vitb32_in1k"
