"""F-ViT on OV-COCO with EVA02-CLIP ViT-B/16, as released, attention-free last block.

    python ov_detection/lazy_train.py --num-gpus 8 --config-file ov_detection/configs/ov_coco/fvit_vitb16_baseline.py

640 px, batches of 64, 3 epochs; time not measured here.
Paper (--row "F-ViT, EVA02-CLIP ViT-B/16, CLS"): AP50 of novel classes 17.5 (base 41.0, all 34.9).
"""

from ..common.ov_coco import dataloader, evaluation, lr_multiplier, model, optimizer, train, vocabulary

model.clip.update(arch="EVA02-B-16", checkpoint="weights/EVA02_CLIP_B_psz16_s8B.pt", dense="last-block-value")
train.output_dir = "output/ov_coco_fvit_vitb16_baseline"
