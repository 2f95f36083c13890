"""F-ViT on OV-LVIS with EVA02-CLIP ViT-B/16, as released, attention-free last block.

    python ov_detection/lazy_train.py --num-gpus 8 --config-file ov_detection/configs/ov_lvis/fvit_vitb16_baseline.py

1024 px, batches of 64, 48 epochs; time not measured here.
Paper (--row "F-ViT, EVA02-CLIP ViT-B/16, CLS"): mask APr 11.5 (APc 12.3, APf 20.6, AP 15.4).
"""

from ..common.ov_lvis import dataloader, evaluation, lr_multiplier, model, optimizer, train, vocabulary

model.clip.update(arch="EVA02-B-16", checkpoint="weights/EVA02_CLIP_B_psz16_s8B.pt", dense="last-block-value")
train.output_dir = "output/ov_lvis_fvit_vitb16_baseline"
