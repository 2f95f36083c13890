"""ResNet-50, the ConvNet reference of figure 3 and table 1, with the hyper-parameters of the ViT (paper Sec. 4.2).

    python cls_pretrain/lazy_train.py --config-file cls_pretrain/configs/resnet50_in1k.py --num-gpus 8 \\
        dataloader.train.dataset.root=/path/to/imagenet

Its global token is its own average pool. Paper: Point-in-Box 68.4.
"""

from detectron2.config import LazyCall as L
from torchvision.models import resnet50

from .vitb16_in1k import dataloader, evaluation, lr_multiplier, model, optimizer, train

model.model = L(resnet50)(num_classes=1000)
model.pool = "host"
train.output_dir = "output/resnet50_in1k"
