"""Debug twin: boxes and masks on synthetic images of 64 pixels, seconds on a CPU, no data. Its numbers mean nothing.

    python ov_detection/lazy_train.py --config-file ov_detection/configs/ov_coco/debug_synthetic.py

The frozen CLIP and its text tower, which names the classes, have random weights.
"""

from detectron2.config import LazyCall as L
from ov_data import synthetic_ov_set

from ..common.ov_coco import dataloader, evaluation
from ..common.small import lr_multiplier, model, optimizer, train, vocabulary

model.square_size = 64
model.channels = 16
model.roi_heads.update(masks=True, conv_width=16, fc_width=32)
for split, num_images in (("train", 32), ("val", 10)):
    loader = dataloader["train" if split == "train" else "test"]
    loader.dataset = L(synthetic_ov_set)(
        folder="output/synthetic_ov",
        split=split,
        num_images=num_images,
        size="${model.square_size}",
        num_classes=5,
        num_novel=2,
        masks="${model.roi_heads.masks}",
        augment=True,
    )
    loader.update(batch_size=4, num_workers=0)
optimizer.lr = 1e-3
vocabulary.prompts = "a"
evaluation.update(kinds=["box", "mask"], dataset="synthetic objects val")
train.update(output_dir="output/debug_ov", epochs=2.0, eval_epochs=1.0, checkpoint_epochs=0.4, log_period=2)
train.checkpointer.max_to_keep = 3
