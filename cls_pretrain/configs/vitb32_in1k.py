"""ViT-B/32 for the K table (paper Tab. 9): as vitb16_in1k.py with patches of 32 pixels (7 x 7).

    for pool in "pool=cls" "pool=mean" "top_k=1" "top_k=7" "top_k=49"; do
        python cls_pretrain/lazy_train.py --config-file cls_pretrain/configs/vitb32_in1k.py --num-gpus 8 \\
            model.$pool train.output_dir=output/vitb32_$pool dataloader.train.dataset.root=/path/to/imagenet
    done

Batch 4096 (8 GPUs x 512), 100 epochs. Paper, top-1: CLS 59.1, mean 64.3, K=1 64.6, K=7 64.8, K=49 64.9.
"""

from .vitb16_in1k import dataloader, evaluation, lr_multiplier, model, optimizer, train

model.model.patch_size = 32
train.output_dir = "output/vitb32_in1k"
