#!/usr/bin/env bash
# k-NN accuracy on ImageNet-1k with a frozen backbone, k = 10, 20, 100, 200 (DINO's protocol).
#
#   tools/eval_knn_imagenet.sh /path/to/imagenet checkpoint.pth [flag of dino/eval_knn.py ...]
#   RUN="torchrun --nproc-per-node 8" tools/eval_knn_imagenet.sh /path/to/imagenet checkpoint.pth --arch vit_base
#
# Nothing is downloaded. /path/to/imagenet holds train/ and val/ with a folder per class, 1,281,167 and 50,000 images
# (https://image-net.org/download.php), or is Kaggle's imagenet-object-localization-challenge. checkpoint.pth is one of
# dino/main_dino.py or of DINO, or a backbone that DINO released (github.com/facebookresearch/dino, "backbone only").
#
# Expected with k = 20, in percent (DINO's README): ViT-S/16 74.5, ViT-S/8 78.3, ViT-B/16 76.1, ViT-B/8 77.4, ResNet-50
# 67.5; ViT-S/16 after main_dino.py's defaults, 100 epochs: 69.3.
set -euo pipefail

name=eval_knn_imagenet.sh
imagenet=${1:-}
weights=${2:-}
read -ra run <<<"${RUN:-python}"
scripts=$(cd "$(dirname "$0")/../dino" && pwd)

if [ -z "$imagenet" ] || [ -z "$weights" ] || [ "${imagenet#-}" != "$imagenet" ] || [ "${weights#-}" != "$weights" ]; then
    echo "$name: error: the first argument is ImageNet's folder, the second the backbone's weights" >&2
    exit 2
fi
if [ ! -f "$weights" ]; then
    echo "$name: error: no file $weights: the head of this script says what it may be" >&2
    exit 2
fi
for train in "$imagenet/train" "$imagenet/ILSVRC/Data/CLS-LOC/train" "$imagenet/Data/CLS-LOC/train" ""; do
    if [ -d "$train" ]; then
        break
    fi
done
if [ -z "$train" ]; then
    echo "$name: error: no train/ in $imagenet: the head of this script says what is expected there" >&2
    exit 2
fi
classes=$(find -L "$train" -mindepth 1 -maxdepth 1 -type d | wc -l)
if [ "$classes" -ne 1000 ]; then
    echo "$name: error: $train has $classes classes, ImageNet-1k has 1000; for other images call" \
        "dino/eval_knn.py --data_path $imagenet" >&2
    exit 2
fi
exec "${run[@]}" "$scripts/eval_knn.py" --data_path "$imagenet" --dataset_name ImageNet-1k \
    --pretrained_weights "$weights" "${@:3}"
