"""F-ViT on OV-COCO with OpenAI CLIP ViT-L/14-336, tuned with LaSt, its patches as they are.

    python ov_detection/lazy_train.py --num-gpus 8 --config-file ov_detection/configs/ov_coco/fvit_openai_vitl14_last.py

896 px, batches of 64, 3 epochs; time and AP not measured here, nor in the paper.
F-ViT's authors: the best epoch is usually the second.
model.clip.checkpoint: weights tuned with LaSt; none are released, clip/train_clip.py makes them.
"""

from ..common.ov_coco import dataloader, evaluation, lr_multiplier, model, optimizer, train, vocabulary

model.clip.update(arch="ViT-L-14-336-quickgelu", checkpoint="weights/last_openai_l_14_336.pt", dense="plain")
model.square_size = 896
train.output_dir = "output/ov_coco_fvit_openai_vitl14_last"
