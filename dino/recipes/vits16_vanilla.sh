#!/usr/bin/env bash
# DINO's vanilla ViT-S/16: 100 epochs, all defaults. Published: 69.3 k-NN, 74.0 linear on ImageNet-1k.
#
#   dino/recipes/vits16_vanilla.sh /path/to/imagenet/train output/dino_vits16 [--pooling last --top_k 0.25]
#
# 8 GPUs x 64 images = 512 per step; 1,281,167 images / 512 = 2,502 steps per epoch, 250,200 in all; learning rate
# 0.0005 * 512 / 256 = 0.001. Published time: 1.75 days on 8 V100. On fewer GPUs keep the 512, for example on 4:
# NUM_GPUS=4 ... --batch_size_per_gpu 128, with --accumulation_steps 2 if that does not fit.
set -euo pipefail
data_path=${1:?folder of training images} output_dir=${2:?folder of the run}
scripts=$(cd "$(dirname "$0")/.." && pwd)
torchrun --standalone --nproc-per-node "${NUM_GPUS:-8}" "$scripts/main_dino.py" \
    --arch vit_small --patch_size 16 --data_path "$data_path" --output_dir "$output_dir" "${@:3}"
