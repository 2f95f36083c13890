#!/usr/bin/env bash
# A small CLIP from scratch on Tiny-ImageNet (100 classes, 64 pixels), captioned "a photo of a {class}".
#
#   clip/recipes/clip_mini_tiny_imagenet.sh /path/to/tiny-imagenet-100 output clip_mini_tiny_last
#   clip/recipes/clip_mini_tiny_imagenet.sh /path/to/tiny-imagenet-100 output clip_mini_tiny_cls --pooling cls
#   EPOCHS=50 DEVICE=cuda clip/recipes/clip_mini_tiny_imagenet.sh ROOT output clip_mini_tiny_last_long --workers 8
#
# 25,000 images / 64 = 390 steps per epoch, 780 in two epochs: about 12 minutes on one core of a 2023 server. Classes are
# called as open_clip calls ImageNet's. In a batch of 64 images of 100 classes some captions are equal, each the other's
# wrong negative, which keeps the loss above 0. Later flags override these.
set -euo pipefail
root=${1:?folder that holds train/ and val/} logs=${2:?folder of the runs} name=${3:?name of the run}
scripts=$(cd "$(dirname "$0")/.." && pwd)
"${PYTHON:-python}" "$scripts/train_clip.py" --model clip_mini_8 --pooling last \
    --dataset-type class-folder --train-data "$root" --class-names imagenet --caption-template "a photo of a {}" \
    --batch-size 64 --epochs "${EPOCHS:-2}" --lr 1e-3 --wd 0.1 --beta1 0.9 --beta2 0.98 --eps 1e-6 --warmup 100 \
    --grad-clip-norm 1.0 --device "${DEVICE:-cpu}" --precision fp32 --workers 0 --log-every-n-steps 50 \
    --logs "$logs" --name "$name" "${@:4}"
