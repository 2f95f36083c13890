"""Window attention on a CPU (paper Sec. 4.4, table 2): tiny_imagenet.py with windows of 4 x 4 at all 4 blocks, CLS.

    python cls_pretrain/lazy_train.py --config-file cls_pretrain/configs/tiny_imagenet_window_all.py \\
        dataloader.train.dataset.root=/path/to/tiny-imagenet-100

The 8 x 8 grid has four windows; CLS stays global.
The paper's direction, for ViT-S on ImageNet: Point-in-Box up, top-1 down.
"""

from .tiny_imagenet import dataloader, evaluation, lr_multiplier, model, optimizer, train

model.pool = "cls"
model.window_layers = [0, 1, 2, 3]
model.window_size = 4
train.output_dir = "output/tiny_imagenet_window_all"
