"""F-ViT on OV-COCO with OpenAI CLIP ViT-B/16, tuned with LaSt, its patches as they are.

    python ov_detection/lazy_train.py --num-gpus 8 --config-file ov_detection/configs/ov_coco/fvit_openai_vitb16_last.py

640 px, batches of 64, 3 epochs; time and AP not measured here, nor in the paper.
model.clip.checkpoint: weights tuned with LaSt (LaSt's release).
"""

from ..common.ov_coco import dataloader, evaluation, lr_multiplier, model, optimizer, train, vocabulary

model.clip.update(arch="ViT-B-16-quickgelu", checkpoint="weights/openai_b_16.pt", dense="plain")
train.output_dir = "output/ov_coco_fvit_openai_vitb16_last"
