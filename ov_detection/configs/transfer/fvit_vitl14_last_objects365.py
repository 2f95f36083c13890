"""F-ViT of OV-LVIS (EVA02-CLIP ViT-L/14-336, tuned with LaSt) on the 365 classes of Objects365 v1: evaluation only.

    python ov_detection/lazy_train.py --num-gpus 8 --eval-only \\
        --config-file ov_detection/configs/transfer/fvit_vitl14_last_objects365.py \\
        train.init_checkpoint=output/ov_lvis_fvit_vitl14_last/model_final.pth

As fvit_vitl14_last_coco.py.
"""

from .fvit_vitl14_last_coco import dataloader, evaluation, lr_multiplier, model, optimizer, train, vocabulary

dataloader.test.dataset.update(
    json_file="datasets/objects365/objects365_val.json", image_root="datasets/objects365/val"
)
evaluation.dataset = "Objects365 v1 val"
train.output_dir = "output/transfer_objects365_fvit_vitl14_last"
