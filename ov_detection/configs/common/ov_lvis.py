"""F-ViT on OV-LVIS, B/16: what ov_lvis/ starts from. Mask head, lower thresholds, 48 epochs with lr / 10 at 32 and 44.

Images are those that ov_detection/make_ov_lvis.py lists; the rare classes are novel. The few of the 100,170 images
without common or frequent objects are left out.
"""

from .fvit import model, vocabulary
from .ov_coco import dataloader
from .schedule import lr_multiplier, optimizer, train

dataloader.train.dataset.json_file = "datasets/lvis/lvis_v1_train_norare.json"
dataloader.test.dataset.json_file = "datasets/lvis/lvis_v1_val.json"
for _split in ("train", "test"):
    dataloader[_split].dataset.image_root = "datasets/coco"  # images are of train2017/ and val2017/
evaluation = dict(kinds=["box", "mask"], dataset="OV-LVIS val", table="ov_lvis", dump="", dump_regions=0)

model.square_size = 1024
model.classifier.background_weight = 0.9
model.rpn.norm = "auto"
model.roi_heads.update(masks=True, low_quality=True, vlm_temperature=50.0, beta=0.6)
model.roi_heads.update(score_thresh=1e-4, nms_thresh=0.5, detections_per_image=300)
lr_multiplier.scheduler["values"] = [1.0, 0.1, 0.01]
train.update(epochs=48.0, lr_steps=[32, 44], eval_epochs=12.0, checkpoint_epochs=4.0, best_metric="mask_apr")
