#!/usr/bin/env bash
# Zero-shot segmentation of PASCAL VOC 2012 val without background, 1,449 images, 20 classes (paper, Tab. 4).
#
#   tools/eval_seg_voc20.sh /path/to/VOCdevkit/VOC2012 \
#       --model "CLIP ViT-B/16, CLS=open_clip:ViT-B-16-quickgelu@ViT-B-16.pt" \
#       --model "CLIP ViT-B/16, LaSt=open_clip:ViT-B-16-quickgelu@epoch_1.pt" [flag of clip/eval_zero_shot_seg.py ...]
#   RUN="torchrun --nproc-per-node 8" tools/eval_seg_voc20.sh ...
#
# Nothing is downloaded. VOCtrainval_11-May-2012.tar of http://host.robots.ox.ac.uk/pascal/VOC/voc2012 unpacks to
# that folder.
# ViT-B-16.pt is OpenAI's (github.com/openai/CLIP), epoch_1.pt what clip/train_clip.py writes.
#
# Expected mIoU of CLIP ViT-B/16 in percent: 49.0 with CLS, 75.0 with LaSt (paper). SCLIP's paper: 49.4.
# The paper does not name its protocol; its CLS numbers are nearest to SCLIP's settings with a plain last block.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=script_checks.sh
source "$(dirname "$0")/script_checks.sh"

segmentation "the folder VOC2012 with JPEGImages in it" voc20 sclip "$@"
