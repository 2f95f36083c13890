"""F-ViT of OV-LVIS (EVA02-CLIP ViT-L/14-336, tuned with LaSt) on COCO's 80 classes: box AP, evaluation only.

    python ov_detection/lazy_train.py --num-gpus 8 --eval-only \\
        --config-file ov_detection/configs/transfer/fvit_vitl14_last_coco.py \\
        train.init_checkpoint=output/ov_lvis_fvit_vitl14_last/model_final.pth

All classes are scored alike, by alpha = beta = 0.2 and fixed temperatures, 120 of CLIP's cosines and 50 of the
detector's, as in F-ViT's transfer; the rest is OV-LVIS's. Their names are the annotation file's.
"""

from ..ov_lvis.fvit_vitl14_last import dataloader, evaluation, lr_multiplier, model, optimizer, train, vocabulary

model.classifier.fixed_temperature = 50.0
model.roi_heads.update(vlm_temperature=120.0, alpha=0.2, beta=0.2)
dataloader.test.dataset.update(
    json_file="datasets/coco/annotations/instances_val2017.json", image_root="datasets/coco/val2017", novel=[]
)
evaluation.update(kinds=["box"], dataset="COCO val2017", table="ov_coco")
train.output_dir = "output/transfer_coco_fvit_vitl14_last"
