#!/usr/bin/env bash
# A small DINO on Tiny-ImageNet (100 classes, 64 pixels): ViT of 1.8M parameters, patches of 8 pixels (8 x 8).
#
#   dino/recipes/tiny_imagenet.sh /path/to/tiny-imagenet-100 output/dino_tiny_cls
#   dino/recipes/tiny_imagenet.sh /path/to/tiny-imagenet-100 output/dino_tiny_last --pooling last --top_k 0.25
#
# 2 x 64 + 2 x 32 pixels per image; 25,000 images / 64 = 390 steps per epoch; learning rate 0.002 * 64 / 256 = 0.0005.
# About 30 ms of one CPU core per image, so 10 to 15 minutes per epoch; EPOCHS=100 is for a GPU (add --num_workers 8).
# With one epoch the warm-up of the learning rate is left out. A share as --top_k keeps as many of the 64 patches of a
# large crop, in proportion, as of the 16 of a small one.
set -euo pipefail
root=${1:?folder that holds train/} output_dir=${2:?folder of the run}
epochs=${EPOCHS:-1}
scripts=$(cd "$(dirname "$0")/.." && pwd)
python "$scripts/main_dino.py" --arch vit_mini --patch_size 8 --out_dim 2048 \
    --global_crop_size 64 --local_crop_size 32 --local_crops_number 2 \
    --global_crops_scale 0.4 1.0 --local_crops_scale 0.1 0.4 \
    --batch_size_per_gpu 64 --epochs "$epochs" --warmup_epochs $((epochs / 10)) --lr 0.002 --drop_path_rate 0 \
    --momentum_teacher 0.99 --teacher_temp 0.04 --num_workers 1 --saveckp_freq 10 \
    --data_path "$root/train" --output_dir "$output_dir" "${@:3}"
