"""F-ViT's optimiser, OV-COCO's length. ov_training.plan_run works out what is None; given, it is in iterations."""

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
    scheduler=L(MultiStepParamScheduler)(values=[1.0], milestones=None, num_updates="${train.max_iter}"),
    warmup_factor=0.001,
    warmup_length=None,
)

train = dict(
    output_dir="output/fvit",
    init_checkpoint="",
    epochs=3.0,
    lr_steps=[],  # epochs at which lr takes the next of lr_multiplier.scheduler.values
    warmup_images=250 * 64,
    eval_epochs=1.0,
    checkpoint_epochs=1.0,
    max_iter=None,
    seed=0,
    log_period=20,
    eval_period=None,
    checkpointer=dict(period=None, max_to_keep=100),
    save_period=500,  # iterations between savings of model_latest.pth; 0 is never
    best_metric="ap50_novel",  # whose best evaluation is kept as well as the last: model_best.pth; "" is none
    lr_batch_size=64,  # images per iteration, by as many batches as that takes; lr follows the rest. 0 is one batch
    accumulate=None,  # batches per iteration and process; None is by lr_batch_size
    bf16=True,
    clip_grad_norm=1.0,
    gradient_compression="none",  # between GPUs; fp16 and bf16 send half the bytes
    fused_pool=False,  # LaSt by fused GPU kernels
    wandb=False,  # Weights & Biases beside TensorBoard
)
