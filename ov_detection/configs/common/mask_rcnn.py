"""ViTDet's Mask R-CNN on COCO (Li et al., ECCV 2022), ViT-B/16, 100 epochs: what coco/ starts from.

All 80 classes and COCO's own files. Images are brought to a square by large-scale jitter, 0.1 to 2 times 1024 pixels.
"""

from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import MultiStepParamScheduler
from vitdet.mask_rcnn import build_mask_rcnn, vitdet_params

from .ov_coco import dataloader, evaluation
from .schedule import lr_multiplier, optimizer, train

model = L(build_mask_rcnn)(
    init=None,  # the trained backbone, "timm:<name>@<file>" or any other text of a model; null begins at random
    frozen=False,  # True is a probe: heads on the model of init as it is
    cache_images=0,  # of a frozen backbone, for training without augmentation
    net=dict(
        patch_size=16,
        embed_dim=768,
        depth=12,
        num_heads=12,
        drop_path_rate=0.1,
        use_rel_pos=True,
        window_size=14,
        window_block_indexes=[0, 1, 3, 4, 6, 7, 9, 10],  # every third block sees the whole image
        pretrain_img_size=224,
    ),
    square_size=1024,
    channels=256,
    scale_factors=[4.0, 2.0, 1.0, 0.5],
    rpn=dict(
        num_convs=2, anchor_size=8.0, batch_size_per_image=256, pre_nms_topk=[2000, 1000], post_nms_topk=[1000, 1000]
    ),
    roi_heads=dict(
        masks=True,
        batch_size_per_image=512,
        fc_width=1024,
        num_convs=4,
        conv_width=256,
        canonical_box=224,
        score_thresh=0.05,
        nms_thresh=0.5,
        detections_per_image=100,
    ),
)
for _split, _name in (("train", "train2017"), ("test", "val2017")):
    dataloader[_split].dataset.update(json_file=f"datasets/coco/annotations/instances_{_name}.json", novel=[])
dataloader.train.dataset.antialias = True
evaluation.update(kinds=["box", "mask"], dataset="COCO val2017", table="coco")

optimizer.params = L(vitdet_params)(lr="${optimizer.lr}", layer_decay=0.7, depth="${model.net.depth}")
# lr / 10 after 88.9 and 96.3 % of the run, however long it is
lr_multiplier.scheduler = L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=[889, 963], num_updates=1000)
train.update(output_dir="output/mask_rcnn_vitdet", epochs=100.0, eval_epochs=25.0, checkpoint_epochs=5.0)
train.update(clip_grad_norm=0.0, best_metric="mask_ap_all")
