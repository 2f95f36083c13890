"""The cure without labels: LaSt learns a model's own logits on any folder of images, on two cores or a GPU.

    python cls_pretrain/lazy_train.py --config-file cls_pretrain/configs/cure.py \\
        model.init=timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k@/path/to/file.safetensors \\
        dataloader.train.dataset.root=/any/folder

The student is the model with LaSt, its head kept; the teacher is the model as it was. Images lie flat or nested, and
all are then learned from and evaluated, or in ImageNet's layout, whose training split is learned from and whose
validation split is evaluated: agreement with the teacher's top-1, and accuracy where class folders are the model's.
Batch 64, 25,000 images; the time depends on the model, and model.image_size=112 takes about a quarter of that of 224.
"""

from last_vit.command_line import cores_at_hand

from .finetune_vit_tiny import dataloader, evaluation, lr_multiplier, model, optimizer, train

model.update(num_classes=None, image_size=None, temperature=1.0, top_k=0.5)  # image_size: the model's own
optimizer.lr = 1e-4
dataloader.train.dataset.labelled = False
dataloader.test.dataset.update(labelled=False, boxes=False)
dataloader.train.num_workers = dataloader.test.num_workers = cores_at_hand(most=12)
dataloader.test.dataset.transform.resize = None  # in the model's own ratio to image_size
train.update(output_dir="output/cure", best_metric="teacher_agreement")
