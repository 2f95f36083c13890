"""F-ViT on OV-LVIS with EVA02-CLIP ViT-B/16, tuned with LaSt, its patches as they are.

    python ov_detection/lazy_train.py --num-gpus 8 --config-file ov_detection/configs/ov_lvis/fvit_vitb16_last.py

1024 px, batches of 64, 48 epochs; time not measured here.
model.clip.checkpoint: weights tuned with LaSt; none are released, clip/train_clip.py makes them.
Paper (--row "F-ViT, EVA02-CLIP ViT-B/16, LaSt"): mask APr 22.8.
"""

from ..common.ov_lvis import dataloader, evaluation, lr_multiplier, model, optimizer, train, vocabulary

model.clip.update(arch="EVA02-B-16", checkpoint="weights/last_eva02_b_16.pt", dense="plain")
train.output_dir = "output/ov_lvis_fvit_vitb16_last"
