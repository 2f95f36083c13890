"""OV-LVIS's images, 8 per GPU, listed by ov_detection/make_ov_lvis.py, and mask AP of rare (novel) and others."""

from .coco_data import dataloader

dataloader.train.dataset.json_file = "datasets/lvis/lvis_v1_train_norare.json"
dataloader.test.dataset.json_file = "datasets/lvis/lvis_v1_val.json"
for _split in ("train", "test"):
    dataloader[_split].dataset.image_root = "datasets/coco"  # images are of train2017/ and val2017/

evaluation = dict(kinds=["box", "mask"], dataset="OV-LVIS val", table="ov_lvis", row="")
