"""COCO detection and instance segmentation with a ViT-B/16 trained on labels as backbone (paper, section 8.3).

    python ov_detection/lazy_train.py --num-gpus 8 --config-file ov_detection/configs/coco/mask_rcnn_vitdet_b.py \\
        model.init=cls_pretrain/conf.py@output/vitb16_in1k_last/model_final.pth

ViTDet's recipe: 1024 px, batches of 64, 100 epochs; train.epochs=25 is the short one. time not measured here.
model.init is the LaSt or CLS backbone, as any model text (docs/hosts.md): a checkpoint of cls_pretrain or dino, timm's
or torchvision's; without it the backbone begins with random weights. The paper prints no number.
"""

from ..common.mask_rcnn import dataloader, evaluation, lr_multiplier, model, optimizer, train

train.output_dir = "output/mask_rcnn_vitdet_b"
