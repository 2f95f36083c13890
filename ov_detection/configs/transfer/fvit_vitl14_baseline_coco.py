"""F-ViT of OV-LVIS (EVA02-CLIP ViT-L/14-336, as released) on COCO's 80 classes: evaluation only.

    python ov_detection/lazy_train.py --num-gpus 8 --eval-only \\
        --config-file ov_detection/configs/transfer/fvit_vitl14_baseline_coco.py \\
        train.init_checkpoint=output/ov_lvis_fvit_vitl14_baseline/model_final.pth

As fvit_vitl14_last_coco.py, with the tower of ov_lvis/fvit_vitl14_baseline.py.
"""

from .fvit_vitl14_last_coco import dataloader, evaluation, lr_multiplier, model, optimizer, train, vocabulary

model.clip.update(checkpoint="weights/EVA02_CLIP_L_336_psz14_s6B.pt", dense="last-block-value")
train.output_dir = "output/transfer_coco_fvit_vitl14_baseline"
