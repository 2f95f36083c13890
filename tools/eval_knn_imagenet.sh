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
# shellcheck source-path=SCRIPTDIR source=script_checks.sh
source "$(dirname "$0")/script_checks.sh"

imagenet=${1:-}
weights=${2:-}
need_arguments "the first argument is ImageNet's folder, the second the backbone's weights" "$imagenet" "$weights"
need_file "$weights" "the head of this script says what it may be"
train=$(imagenet_split "$imagenet" train)
if [ -z "$train" ]; then
    fail "no train/ in $imagenet: the head of this script says what is expected there"
fi
need_classes "$train" "dino/eval_knn.py --data_path $imagenet"
exec "${run[@]}" "$repository/dino/eval_knn.py" --data_path "$imagenet" --dataset_name ImageNet-1k \
    --pretrained_weights "$weights" "${@:3}"
