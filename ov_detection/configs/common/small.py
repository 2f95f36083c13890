"""A detector for a CPU: a frozen tower with random weights (patches of 8 pixels) and narrow heads, one process."""

from pathlib import Path

from .fvit import model, vocabulary
from .schedule import lr_multiplier, optimizer, train

_TOWER = Path(__file__).resolve().parents[3] / "clip" / "model_configs" / "clip_mini_8.json"

model.clip.update(arch=str(_TOWER), checkpoint=None, random_seed=0, bf16=False)
model.channels = 32
model.rpn.update(pre_nms_topk=[500, 300], post_nms_topk=[300, 100], batch_size_per_image=128, num_convs=1)
model.roi_heads.update(fc_width=256, num_convs=2, conv_width=64, batch_size_per_image=64)
lr_multiplier.warmup_length = 0.05
train.update(lr_batch_size=0, bf16=False)
