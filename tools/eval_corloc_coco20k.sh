#!/usr/bin/env bash
# CorLoc on COCO20k, 19,817 images of COCO's train2014, all methods (paper, Tab. 7).
#
#   tools/eval_corloc_coco20k.sh /path/to/coco --model "DINO LaSt=dino:vit_small/16@checkpoint.pth" \
#       [flag of dino/eval_object_discovery.py ...]
#   RUN="torchrun --nproc-per-node 8" tools/eval_corloc_coco20k.sh ...
#
# Nothing is downloaded. /path/to/coco holds train2014/ (train2014.zip), annotations/instances_train2014.json
# (annotations_trainval2014.zip, both of https://cocodataset.org/#download), and the list of images,
# coco_20k_filenames.txt, from the folder datasets/ of the repositories of LOST or TokenCut. The published numbers of
# LOST, TokenCut and DINO-seg are of DINO's dino_deitsmall16_pretrain.pth:
# --model "DINO=dino:vit_small/16@dino_deitsmall16_pretrain.pth".
#
# Expected of ViT-S/16, in percent: LaSt 51.6 (paper); LOST 50.7, TokenCut 58.8 (their papers); DINO-seg 42.1 (LOST's).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=script_checks.sh
source "$(dirname "$0")/script_checks.sh"

coco=${1:-}
json=$coco/annotations/instances_train2014.json
list=$coco/coco_20k_filenames.txt
need_arguments "the first argument is the folder that holds train2014/, annotations/ and the list" "$coco"
origin="the head of this script says where it comes from"
need_folder "$coco/train2014" "$origin"
need_file "$json" "$origin"
need_file "$list" "$origin"
need_lines 19817 "$list" COCO20k "dino/eval_object_discovery.py --coco-list $list"
exec "${run[@]}" "$repository/dino/eval_object_discovery.py" --coco-images "$coco/train2014" --coco-json "$json" \
    --coco-list "$list" --dataset-name "COCO20k" --method patch-score lost dino-seg tokencut \
    --component peak largest all "${@:2}"
