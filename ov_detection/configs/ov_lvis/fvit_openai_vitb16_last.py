"""F-ViT on OV-LVIS with OpenAI CLIP ViT-B/16, tuned with LaSt, its patches as they are.

    python ov_detection/lazy_train.py --num-gpus 8 --config-file ov_detection/configs/ov_lvis/fvit_openai_vitb16_last.py

1024 px, batches of 64, 48 epochs; time and AP not measured here, nor in the paper.
model.clip.checkpoint: weights tuned with LaSt (LaSt's release).
"""

from ..common.ov_lvis import dataloader, evaluation, lr_multiplier, model, optimizer, train, vocabulary

model.clip.update(arch="ViT-B-16-quickgelu", checkpoint="weights/openai_b_16.pt", dense="plain")
train.output_dir = "output/ov_lvis_fvit_openai_vitb16_last"
