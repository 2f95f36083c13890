#!/usr/bin/env bash
# Coarse segmentation on PASCAL VOC 2012 val, 1,449 images, by the paper's rule and by DINO's (paper, Tab. 6).
#
#   tools/eval_coarse_seg_voc12.sh /path/to/VOCdevkit/VOC2012 --model "DINO LaSt=dino:vit_small/16@checkpoint.pth" \
#       [flag of dino/eval_coarse_segmentation.py ...]
#   RUN="torchrun --nproc-per-node 8" tools/eval_coarse_seg_voc12.sh ...
#
# Nothing is downloaded. VOCtrainval_11-May-2012.tar of http://host.robots.ox.ac.uk/pascal/VOC/voc2012 unpacks to that folder.
#
# Expected, in percent: DINO ViT-S/16 47.7 with CLS, 55.1 with LaSt; with labels ViT-S/16 29.5 and 41.9, ViT-B/16 22.3 and
# 32.8. The paper names neither the ground truth nor the image size: union, class and object regions are all printed.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=script_checks.sh
source "$(dirname "$0")/script_checks.sh"

voc=${1:-}
list=$voc/ImageSets/Segmentation/val.txt
need_arguments "the first argument is the folder VOC2012 with JPEGImages in it" "$voc"
need_file "$list" "unpack VOCtrainval_11-May-2012.tar and give its VOCdevkit/VOC2012"
need_lines 1449 "$list" "VOC 2012 val" "dino/eval_coarse_segmentation.py --voc-root $voc"
exec "${run[@]}" "$repository/dino/eval_coarse_segmentation.py" --voc-root "$voc" --voc-split val \
    --dataset-name VOC12 --rule score attention "${@:2}"
