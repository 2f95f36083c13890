"""F-ViT (Wu et al., ICLR 2024) with OV-COCO's values: the detector, and where its class embeddings come from.

`vocabulary.path` is a file of ov_detection/build_class_embeddings.py or of F-ViT's release; "" embeds the class
names with the text tower of model.clip itself. `model.clip.checkpoint` is the CLIP file; nothing is downloaded.
"""

from detectron2.config import LazyCall as L
from fvit.frozen_clip import FrozenClip
from fvit.fvit_model import build_fvit

model = L(build_fvit)(
    clip=L(FrozenClip)(
        arch="EVA02-B-16",
        checkpoint="weights/EVA02_CLIP_B_psz16_s8B.pt",
        dense="last-block-value",  # F-ViT's; "plain" for towers trained with LaSt
        bf16=True,
        cache_images=0,
        random_seed=None,
    ),
    norm="auto",
    square_size=640,
    vision_language_score=True,
    classifier=dict(temperature=50.0, fixed_temperature=None, background_weight=0.6, zero_background=False),
    rpn=dict(norm="", batch_size_per_image=256, pre_nms_topk=[2000, 2000], post_nms_topk=[1000, 1000]),
    roi_heads=dict(
        masks=False,
        low_quality=False,
        batch_size_per_image=512,
        vlm_temperature=75.0,
        alpha=0.1,
        beta=0.8,
        fusion="f-vit",
        score_thresh=0.01,
        nms_thresh=0.4,
        detections_per_image=100,
    ),
)
vocabulary = dict(path="", prompts="vild")
