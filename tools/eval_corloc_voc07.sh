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
# shellcheck source-path=SCRIPTDIR source=script_checks.sh
source "$(dirname "$0")/script_checks.sh"

discovery 2007 5011 VOCtrainval_06-Nov-2007.tar "$@"
