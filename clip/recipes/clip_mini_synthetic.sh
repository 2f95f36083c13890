#!/usr/bin/env bash
# A small CLIP from scratch on drawn images and their captions: ViT of 2.7M parameters, 64 pixels, patches of 8 (8 x 8).
#
#   clip/recipes/clip_mini_synthetic.sh output clip_mini_syn_last
#   clip/recipes/clip_mini_synthetic.sh output clip_mini_syn_cls --pooling cls
#   EPOCHS=50 DEVICE=cuda clip/recipes/clip_mini_synthetic.sh output clip_mini_syn_last_long --workers 8
#
# 20,480 images / 128 = 160 steps per epoch, 320 in two epochs. Drawing, forward and backward take about 16 ms per image
# on one core of a 2023 server, so 11 minutes. The loss and the ranks that are logged after each epoch are over 1,000
# other drawn images, where chance is ln(128) = 4.85; captions repeat within a batch, so it does not go to 0. Later flags
# override these.
set -euo pipefail
logs=${1:?folder of the runs} name=${2:?name of the run}
scripts=$(cd "$(dirname "$0")/.." && pwd)
"${PYTHON:-python}" "$scripts/train_clip.py" --model clip_mini_8 --pooling last \
    --dataset-type synthetic-captions --train-num-samples "${SAMPLES:-20480}" \
    --val-data synthetic-captions --val-num-samples 1000 \
    --batch-size 128 --epochs "${EPOCHS:-2}" --lr 1e-3 --wd 0.1 --beta1 0.9 --beta2 0.98 --eps 1e-6 --warmup 40 \
    --grad-clip-norm 1.0 --device "${DEVICE:-cpu}" --precision fp32 --workers 0 --log-every-n-steps 20 \
    --logs "$logs" --name "$name" "${@:3}"
