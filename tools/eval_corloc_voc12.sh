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
# shellcheck source-path=SCRIPTDIR source=script_checks.sh
source "$(dirname "$0")/script_checks.sh"

discovery 2012 11540 VOCtrainval_11-May-2012.tar "$@"
