"""How well a frozen backbone's patches detect: heads alone on coco-mini, each image's features computed once, on a CPU.

    python ov_detection/lazy_train.py --config-file ov_detection/configs/coco/coco_mini_probe.py \\
        model.init=timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k@/path/to/file.safetensors

Any model text is a backbone; model.init=timm:vit_tiny_patch16_224@random is the control.
"""

from .coco_mini_vitdet_ti import dataloader, evaluation, lr_multiplier, model, optimizer, train

model.update(frozen=True, cache_images=600)
train.update(output_dir="output/coco_mini_probe", epochs=6.0, checkpoint_epochs=2.0)
