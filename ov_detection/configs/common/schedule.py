"""F-ViT's optimiser, OV-COCO's length: AdamW 1e-4 for 64 images per iteration, warm-up of 250 iterations, 3 epochs."""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import MultiStepParamScheduler
from torch.optim import AdamW

optimizer = L(AdamW)(
    params=L(get_default_optimizer_params)(),  # the trainer adds the model; the frozen CLIP is not among them
    lr=1e-4,
    betas=(0.9, 0.999),
    weight_decay=0.1,
)

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0], milestones=[], num_updates="${train.max_iter}"),
    warmup_factor=0.001,
    warmup_length=250 / 5052,
    warmup_method="linear",
)

train = dict(
    output_dir="output/fvit",
    init_checkpoint="",
    max_iter=5052,  # 3 x 107,761 images / 64
    seed=0,
    log_period=20,
    eval_period=1684,
    checkpointer=dict(period=1684, max_to_keep=100),
    lr_batch_size=64,  # lr is scaled by images per iteration over this; 0 leaves it alone
    bf16=True,
    clip_grad_norm=1.0,
    fused_pool=False,  # LaSt by fused GPU kernels
)
