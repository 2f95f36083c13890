"""F-ViT on OV-LVIS with OpenAI CLIP ViT-L/14-336, as released, attention-free last block.

    python ov_detection/lazy_train.py --num-gpus 8 \\
        --config-file ov_detection/configs/ov_lvis/fvit_openai_vitl14_baseline.py

896 px, batches of 64, 48 epochs; time and AP not measured here, nor in the paper.
"""

from ..common.ov_lvis import dataloader, evaluation, lr_multiplier, model, optimizer, train, vocabulary

model.clip.update(arch="ViT-L-14-336-quickgelu", checkpoint="weights/ViT-L-14-336px.pt", dense="last-block-value")
model.square_size = 896
model.roi_heads.beta = 0.4
train.output_dir = "output/ov_lvis_fvit_openai_vitl14_baseline"
