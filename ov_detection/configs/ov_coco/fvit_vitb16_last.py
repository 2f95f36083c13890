"""F-ViT on OV-COCO with EVA02-CLIP ViT-B/16, tuned with LaSt, its patches as they are.

    python ov_detection/lazy_train.py --num-gpus 8 --config-file ov_detection/configs/ov_coco/fvit_vitb16_last.py

640 px, batches of 64, 3 epochs; time not measured here.
model.clip.checkpoint: weights tuned with LaSt; none are released, clip/train_clip.py makes them.
Paper (--row "F-ViT, EVA02-CLIP ViT-B/16, LaSt"): AP50 of novel classes 33.3.
"""

from ..common.ov_coco import dataloader, evaluation, lr_multiplier, model, optimizer, train, vocabulary

model.clip.update(arch="EVA02-B-16", checkpoint="weights/last_eva02_b_16.pt", dense="plain")
train.output_dir = "output/ov_coco_fvit_vitb16_last"
