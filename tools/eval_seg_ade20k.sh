#!/usr/bin/env bash
# Zero-shot segmentation of ADE20K val, 2,000 images, 150 classes (paper, Tab. 4).
#
#   tools/eval_seg_ade20k.sh /path/to/ADEChallengeData2016 \
#       --model "CLIP ViT-B/16, CLS=open_clip:ViT-B-16-quickgelu@ViT-B-16.pt" \
#       --model "CLIP ViT-B/16, LaSt=open_clip:ViT-B-16-quickgelu@epoch_1.pt" [flag of clip/eval_zero_shot_seg.py ...]
#   RUN="torchrun --nproc-per-node 8" tools/eval_seg_ade20k.sh ...
#
# Nothing is downloaded. ADEChallengeData2016.zip of http://sceneparsing.csail.mit.edu unpacks to that folder.
# ViT-B-16.pt is OpenAI's (github.com/openai/CLIP), epoch_1.pt what clip/train_clip.py writes.
#
# Expected mIoU of CLIP ViT-B/16 in percent: 3.1 with CLS, 8.3 with LaSt (paper). SCLIP's paper: 3.1.
# The paper does not name its protocol; its CLS numbers are nearest to SCLIP's settings with a plain last block.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=script_checks.sh
source "$(dirname "$0")/script_checks.sh"

segmentation "the folder ADEChallengeData2016 with images/ and annotations/ in it" ade20k sclip "$@"
