"""F-ViT on OV-LVIS with EVA02-CLIP ViT-L/14-336, tuned with LaSt, its patches as they are.

    python ov_detection/lazy_train.py --num-gpus 8 --config-file ov_detection/configs/ov_lvis/fvit_vitl14_last.py

896 px, batches of 64, 48 epochs; time not measured here.
model.clip.checkpoint: weights tuned with LaSt; none are released, clip/train_clip.py makes them.
Paper (--row "F-ViT, EVA02-CLIP ViT-L/14, LaSt"): mask APr 32.1.
"""

from ..common.ov_lvis import dataloader, evaluation, lr_multiplier, model, optimizer, train, vocabulary

model.clip.update(arch="EVA02-L-14-336", checkpoint="weights/last_eva02_l_14_336.pt", dense="plain")
model.square_size = 896
model.roi_heads.beta = 0.4
train.output_dir = "output/ov_lvis_fvit_vitl14_last"
