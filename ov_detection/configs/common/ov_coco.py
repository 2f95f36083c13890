"""F-ViT on OV-COCO, B/16: what ov_coco/ starts from. Images are those that ov_detection/make_ov_coco.py lists."""

from detectron2.config import LazyCall as L
from ov_data import OvImageSet, build_ov_test_loader, build_ov_train_loader

from last_vit.command_line import cores_at_hand

from .fvit import model, vocabulary
from .schedule import lr_multiplier, optimizer, train

dataloader = dict(
    train=L(build_ov_train_loader)(
        dataset=L(OvImageSet)(
            json_file="datasets/coco/annotations/instances_train2017_seen_2_65_cat.json",
            image_root="datasets/coco/train2017",
            size="${model.square_size}",
            train=True,
            masks="${model.roi_heads.masks}",
            max_images=None,
            antialias=False,  # as F-ViT's OpenCV; True as Pillow
            novel=None,
        ),
        batch_size=8,  # per process
        num_workers=cores_at_hand(),
        seed="${train.seed}",
    ),
    test=L(build_ov_test_loader)(
        dataset=L(OvImageSet)(
            json_file="datasets/coco/annotations/instances_val2017_all_2.json",
            image_root="datasets/coco/val2017",
            size="${model.square_size}",
            train=False,
            max_images=None,
            antialias="${dataloader.train.dataset.antialias}",
            novel="${dataloader.train.dataset.novel}",
        ),
        batch_size=1,
        num_workers="${dataloader.train.num_workers}",
    ),
)
evaluation = dict(kinds=["box"], dataset="OV-COCO val", table="ov_coco", dump="", dump_regions=0)
