#!/usr/bin/env bash
# Zero-shot segmentation of PASCAL Context val without background, 5,104 images, 59 classes (paper, Tab. 4).
#
#   tools/eval_seg_context59.sh /path/to/VOCdevkit/VOC2010 \
#       --model "CLIP ViT-B/16, CLS=open_clip:ViT-B-16-quickgelu@ViT-B-16.pt" \
#       --model "CLIP ViT-B/16, LaSt=open_clip:ViT-B-16-quickgelu@epoch_1.pt" [flag of clip/eval_zero_shot_seg.py ...]
#   RUN="torchrun --nproc-per-node 8" tools/eval_seg_context59.sh ...
#
# Nothing is downloaded. VOC2010 is of http://host.robots.ox.ac.uk/pascal/VOC/voc2010, its
# SegmentationClassContext/ and ImageSets/SegmentationContext/ are made by clip/convert_context59.py.
# ViT-B-16.pt is OpenAI's (github.com/openai/CLIP), epoch_1.pt what clip/train_clip.py writes.
#
# Expected mIoU of CLIP ViT-B/16 in percent: 11.2 with CLS, 15.2 with LaSt (paper). SCLIP's paper: 11.1.
# The paper does not name its protocol; its CLS numbers are nearest to SCLIP's settings with a plain last block.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=script_checks.sh
source "$(dirname "$0")/script_checks.sh"

segmentation "the folder VOC2010 with JPEGImages in it" context59 sclip "$@"
