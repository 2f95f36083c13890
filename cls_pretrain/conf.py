"""ViT-B/16 with LaSt pooling on ImageNet-1k: the released recipe, and the base of every recipe in configs/.

    python cls_pretrain/lazy_train.py --config-file cls_pretrain/conf.py --num-gpus 8 \\
        dataloader.train.dataset.root=/path/to/imagenet

8 GPUs x 512 images, 100 epochs (31,278 iterations). The release reports for its ViT_190k.pth about 67.4 / 87.6 top-1 /
top-5 with model.top_k=1 and 67.6 / 87.8 with model.top_k=7. Plain cross-entropy in float32; weight decay on every
parameter; no mixup, smoothing, EMA, clipping or drop path. The validation root follows the training root unless given.

Switches that the release has not, off here: train.bf16, train.compile, train.fused_pool, optimizer.fused,
train.clip_grad_norm, train.gradient_compression, train.accumulation_steps.
`dataloader.test.dataset.boxes=True` adds Point-in-Box to every evaluation (paper Fig. 3) and needs ImageNet's XML
annotations beside the images.
"""

from classification_net import ClassificationNet
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import CosineParamScheduler
from torch.optim import AdamW
from torchvision.models import VisionTransformer

from last_vit.command_line import cores_at_hand
from last_vit.data.imagenet import ImageNetDataset
from last_vit.data.loaders import build_test_loader, build_train_loader
from last_vit.data.transforms import EvalTransform, train_transform

model = L(ClassificationNet)(
    model=L(VisionTransformer)(
        image_size=224,
        patch_size=16,
        num_layers=12,
        num_heads=12,
        hidden_dim=768,
        mlp_dim=3072,
        num_classes=1000,
    ),
    pool="last",  # cls, mean, max, attention, last
    top_k=1,  # patches kept per channel: an int, or a share in (0, 1]
    sigma=None,
    variant="release",
)

optimizer = L(AdamW)(
    params=L(get_default_optimizer_params)(),  # the trainer adds the model
    lr=1e-3,
    betas=(0.9, 0.95),
    weight_decay=0.3,
    fused=False,
)

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.001),
    warmup_factor=0.1,
    warmup_length=0.01,
    warmup_method="linear",
)

dataloader = dict(
    train=L(build_train_loader)(
        dataset=L(ImageNetDataset)(
            root="datasets/imagenet", split="train", transform=L(train_transform)(size=224), skip_broken=False
        ),
        batch_size=512,  # per process
        num_workers=cores_at_hand(most=12),
        seed="${train.seed}",
    ),
    test=L(build_test_loader)(
        dataset=L(ImageNetDataset)(
            root="${dataloader.train.dataset.root}",
            split="val",
            transform=L(EvalTransform)(resize=256, crop=224),
            boxes=False,
            annotation_root=None,
            skip_broken=False,
        ),
        batch_size=128,
        num_workers=cores_at_hand(most=12),
    ),
)

evaluation = dict(hit_rule="release", max_box_area=None)  # Point-in-Box, where boxes=True; see cls_evaluator.py

train = dict(
    output_dir="output/vitb16_in1k_last",
    init_checkpoint="",
    max_iter=31278,
    seed=0,
    log_period=20,
    eval_period=5000,
    checkpointer=dict(period=3000, max_to_keep=100),
    save_period=500,  # iterations between savings of model_latest.pth; 0 is never
    best_metric="acc1",  # whose best evaluation is kept as well as the last: model_best.pth; "" is none
    bf16=False,
    compile=False,
    fused_pool=False,  # LaSt by fused GPU kernels
    wandb=False,  # Weights & Biases beside TensorBoard
    clip_grad_norm=0.0,
    gradient_compression="none",  # between GPUs; fp16 and bf16 send half the bytes
    accumulation_steps=1,
)
