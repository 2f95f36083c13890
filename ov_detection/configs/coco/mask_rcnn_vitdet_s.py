"""COCO detection and instance segmentation with a ViT-S/16 trained on labels as backbone (paper, section 8.3).

    python ov_detection/lazy_train.py --num-gpus 8 --config-file ov_detection/configs/coco/mask_rcnn_vitdet_s.py \\
        model.init=cls_pretrain/configs/vits16_in1k.py@output/vits16_in1k/model_final.pth

As mask_rcnn_vitdet_b.py, whose values ViT-S takes over: ViTDet publishes none for it. Time not measured here. DINO's:
model.init=dino:vit_small/16@output/dino/checkpoint.pth. The paper prints no number.
"""

from ..common.mask_rcnn import dataloader, evaluation, lr_multiplier, model, optimizer, train

model.net.update(embed_dim=384, num_heads=6)
train.output_dir = "output/mask_rcnn_vitdet_s"
