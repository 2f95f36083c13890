#!/usr/bin/env bash
# CorLoc on PASCAL VOC 2012 trainval, 11,540 images, all methods (paper, Tab. 7).
#
#   tools/eval_corloc_voc12.sh /path/to/VOCdevkit/VOC2012 --model "DINO LaSt=dino:vit_small/16@checkpoint.pth" \
#       [flag of dino/eval_object_discovery.py ...]
#   RUN="torchrun --nproc-per-node 8" tools/eval_corloc_voc12.sh ...
#
# Nothing is downloaded. VOCtrainval_11-May-2012.tar of http://host.robots.ox.ac.uk/pascal/VOC/voc2012 unpacks to that folder.
# The published numbers of LOST, TokenCut and DINO-seg are of DINO's dino_deitsmall16_pretrain.pth:
# --model "DINO=dino:vit_small/16@dino_deitsmall16_pretrain.pth".
#
# Expected of ViT-S/16, in percent: LaSt 67.6 (paper); LOST 64.0, TokenCut 72.1 (their papers); DINO-seg 46.2 (LOST's).
set -euo pipefail

name=eval_corloc_voc12.sh
voc=${1:-}
list=$voc/ImageSets/Main/trainval.txt
read -ra run <<<"${RUN:-python}"
scripts=$(cd "$(dirname "$0")/../dino" && pwd)

if [ -z "$voc" ] || [ "${voc#-}" != "$voc" ]; then
    echo "$name: error: the first argument is the folder VOC2012 with JPEGImages in it" >&2
    exit 2
fi
if [ ! -f "$list" ]; then
    echo "$name: error: no $list: unpack VOCtrainval_11-May-2012.tar and give its VOCdevkit/VOC2012" >&2
    exit 2
fi
if [ "$(grep -c . "$list")" -ne 11540 ]; then
    echo "$name: error: $list names $(grep -c . "$list") images, VOC 2012 trainval has 11540; for others call" \
        "dino/eval_object_discovery.py --voc-root $voc" >&2
    exit 2
fi
exec "${run[@]}" "$scripts/eval_object_discovery.py" --voc-root "$voc" --voc-split trainval \
    --dataset-name "VOC12 trainval" --method patch-score lost dino-seg tokencut --component peak largest all \
    "${@:2}"
