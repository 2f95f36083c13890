"""32 training images of coco-mini learned by heart, on a CPU: a test of the whole chain, not of a method.

    python ov_detection/lazy_train.py --config-file ov_detection/configs/ov_coco/coco_mini_overfit.py

Data and embeddings as in coco_mini.py. No augmentation, so the frozen tower (random weights) sees each image once and
its features are kept. Evaluated on the 32 images that it was trained on: AP50 of base classes must reach 30.
Measured: 53.9 after 37.5 epochs (300 iterations), 85.4 after 112.5 (27 minutes on half a
core; 0.75 s per iteration on a free one).
"""

from .coco_mini import dataloader, evaluation, lr_multiplier, model, optimizer, train, vocabulary

model.clip.cache_images = 32
dataloader.train.dataset.update(max_images=32, augment=False)
dataloader.test.dataset.update(
    json_file="${dataloader.train.dataset.json_file}",
    image_root="${dataloader.train.dataset.image_root}",
    max_images="${dataloader.train.dataset.max_images}",
)
evaluation.dataset = "coco-mini train, the first 32 images, which it was trained on"
train.update(output_dir="output/ov_coco_mini_overfit", best_metric="ap50_base")
train.update(epochs=112.5, eval_epochs=37.5, checkpoint_epochs=12.5)
