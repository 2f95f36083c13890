#!/usr/bin/env bash
# DINO's boosted ViT-S/16: 300 epochs, teacher temperature 0.04 -> 0.07, last layer not normalised.
# Published: 73.3 k-NN, 76.0 linear on ImageNet-1k.
#
#   dino/recipes/vits16_boosted.sh /path/to/imagenet/train /shared/dino_vits16_boosted [--pooling last --top_k 0.25]
#
# On Slurm: 2 nodes x 8 GPUs x 64 images = 1,024 per step; 1,281,167 / 1,024 = 1,251 steps per epoch, 375,300 in all;
# learning rate 0.0005 * 1,024 / 256 = 0.002. Published time: 2.6 days on 16 GPUs. The output folder must be on storage
# that both nodes see. Flags of the job (--partition, --timeout, ...): dino/run_with_submitit.py --help.
set -euo pipefail
data_path=${1:?folder of training images} output_dir=${2:?folder of the run}
scripts=$(cd "$(dirname "$0")/.." && pwd)
python "$scripts/run_with_submitit.py" --nodes 2 --ngpus 8 \
    --arch vit_small --patch_size 16 --epochs 300 --teacher_temp 0.07 --warmup_teacher_temp_epochs 30 \
    --norm_last_layer false --data_path "$data_path" --output_dir "$output_dir" "${@:3}"
