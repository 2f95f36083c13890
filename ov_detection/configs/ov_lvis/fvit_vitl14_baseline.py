"""F-ViT on OV-LVIS with EVA02-CLIP ViT-L/14-336, as released, attention-free last block.

    python ov_detection/lazy_train.py --num-gpus 8 --config-file ov_detection/configs/ov_lvis/fvit_vitl14_baseline.py

896 px, batches of 64, 48 epochs; time not measured here.
Paper (--row "F-ViT, EVA02-CLIP ViT-L/14, CLS"): mask APr 24.2 (APc 27.9, APf 31.5, AP 28.7).
"""

from ..common.ov_lvis import dataloader, evaluation, lr_multiplier, model, optimizer, train, vocabulary

model.clip.update(arch="EVA02-L-14-336", checkpoint="weights/EVA02_CLIP_L_336_psz14_s6B.pt", dense="last-block-value")
model.square_size = 896
model.roi_heads.beta = 0.4
train.output_dir = "output/ov_lvis_fvit_vitl14_baseline"
