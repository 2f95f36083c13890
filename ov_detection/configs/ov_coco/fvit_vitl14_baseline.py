"""F-ViT on OV-COCO with EVA02-CLIP ViT-L/14-336, as released, attention-free last block.

    python ov_detection/lazy_train.py --num-gpus 8 --config-file ov_detection/configs/ov_coco/fvit_vitl14_baseline.py

896 px, batches of 64, 3 epochs; time not measured here. F-ViT's authors: the best epoch is usually the second.
Paper (--row "F-ViT, EVA02-CLIP ViT-L/14, CLS"): AP50 of novel classes 24.7 (base 53.6, all 46.0).
"""

from ..common.ov_coco import dataloader, evaluation, lr_multiplier, model, optimizer, train, vocabulary

model.clip.update(arch="EVA02-L-14-336", checkpoint="weights/EVA02_CLIP_L_336_psz14_s6B.pt", dense="last-block-value")
model.square_size = 896
train.output_dir = "output/ov_coco_fvit_vitl14_baseline"
