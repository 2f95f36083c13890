"""OV-COCO's split of a small part of COCO ("coco-mini", 341 + 144 images) on a CPU, with a random frozen tower.

    python ov_detection/make_ov_coco.py --coco data/coco-mini --output data/ov-coco-mini --no-count-check
    python ov_detection/build_class_embeddings.py --convert coco_80.npy --prompts a --tower "OpenAI CLIP ViT-B/32" \\
        --json data/coco-mini/annotations/instances_val2017.json --output data/coco_80_vitb32.safetensors
    python ov_detection/lazy_train.py --config-file ov_detection/configs/ov_coco/coco_mini.py

The class names are embedded by a real text tower of another width, so only the detector scores
(vision_language_score=False): a random tower knows no names, and novel classes are as good as chance. coco_80.npy has
no embedding of the background: it scores 0, as in Detic. 224 px, 4 images per iteration.
Measured: AP50 of novel classes 0.2, base 0.04, all 0.08: four epochs on 320 images show that the path works, no more.
"""

from ..common.ov_coco import dataloader, evaluation
from ..common.small import lr_multiplier, model, optimizer, train, vocabulary

model.update(square_size=224, vision_language_score=False)
model.classifier.zero_background = True
vocabulary.path = "data/coco_80_vitb32.safetensors"
for split, name in (("train", "train2017_seen_2_65_cat"), ("test", "val2017_all_2")):
    dataloader[split].dataset.json_file = f"data/ov-coco-mini/instances_{name}.json"
    dataloader[split].dataset.image_root = f"data/coco-mini/{'train' if split == 'train' else 'val'}2017"
    dataloader[split].update(batch_size=4, num_workers=1)
optimizer.lr = 1e-3
evaluation.dataset = "OV split of coco-mini val"
train.update(output_dir="output/ov_coco_mini", epochs=3.75, eval_epochs=0.0, checkpoint_epochs=1.25)  # 300 iterations
train.checkpointer.max_to_keep = 2
