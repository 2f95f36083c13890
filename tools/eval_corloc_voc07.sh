#!/usr/bin/env bash
# CorLoc on PASCAL VOC 2007 trainval, 5,011 images, all methods (paper, Tab. 7).
#
#   tools/eval_corloc_voc07.sh /path/to/VOCdevkit/VOC2007 --model "DINO LaSt=dino:vit_small/16@checkpoint.pth" \
#       [flag of dino/eval_object_discovery.py ...]
#   RUN="torchrun --nproc-per-node 8" tools/eval_corloc_voc07.sh ...
#
# Nothing is downloaded. VOCtrainval_06-Nov-2007.tar of http://host.robots.ox.ac.uk/pascal/VOC/voc2007 unpacks to that folder.
# The published numbers of LOST, TokenCut and DINO-seg are of DINO's dino_deitsmall16_pretrain.pth:
# --model "DINO=dino:vit_small/16@dino_deitsmall16_pretrain.pth".
#
# Expected of ViT-S/16, in percent: LaSt 64.4 (paper); LOST 61.9, TokenCut 68.8 (their papers); DINO-seg 45.8 (LOST's).
set -euo pipefail

name=eval_corloc_voc07.sh
voc=${1:-}
list=$voc/ImageSets/Main/trainval.txt
read -ra run <<<"${RUN:-python}"
scripts=$(cd "$(dirname "$0")/../dino" && pwd)

if [ -z "$voc" ] || [ "${voc#-}" != "$voc" ]; then
    echo "$name: error: the first argument is the folder VOC2007 with JPEGImages in it" >&2
    exit 2
fi
if [ ! -f "$list" ]; then
    echo "$name: error: no $list: unpack VOCtrainval_06-Nov-2007.tar and give its VOCdevkit/VOC2007" >&2
    exit 2
fi
if [ "$(grep -c . "$list")" -ne 5011 ]; then
    echo "$name: error: $list names $(grep -c . "$list") images, VOC 2007 trainval has 5011; for others call" \
        "dino/eval_object_discovery.py --voc-root $voc" >&2
    exit 2
fi
exec "${run[@]}" "$scripts/eval_object_discovery.py" --voc-root "$voc" --voc-split trainval \
    --dataset-name "VOC07 trainval" --method patch-score lost dino-seg tokencut --component peak largest all \
    "${@:2}"
