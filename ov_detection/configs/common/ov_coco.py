"""F-ViT on OV-COCO, B/16: what ov_coco/ starts from. See coco_data.py, fvit.py and schedule.py."""

from .coco_data import dataloader, evaluation
from .fvit import model, vocabulary
from .schedule import lr_multiplier, optimizer, train
