#!/usr/bin/env bash
# Zero-shot segmentation of Cityscapes val, 500 images, 19 classes (paper, Tab. 4).
#
#   tools/eval_seg_cityscapes.sh /path/to/cityscapes \
#       --model "CLIP ViT-B/16, CLS=open_clip:ViT-B-16-quickgelu@ViT-B-16.pt" \
#       --model "CLIP ViT-B/16, LaSt=open_clip:ViT-B-16-quickgelu@epoch_1.pt" [flag of clip/eval_zero_shot_seg.py ...]
#   RUN="torchrun --nproc-per-node 8" tools/eval_seg_cityscapes.sh ...
#
# Nothing is downloaded. The folder holds leftImg8bit/ and gtFine/, of leftImg8bit_trainvaltest.zip and
# gtFine_trainvaltest.zip (https://www.cityscapes-dataset.com), as they are or converted by clip/convert_cityscapes.py.
# ViT-B-16.pt is OpenAI's (github.com/openai/CLIP), epoch_1.pt what clip/train_clip.py writes.
#
# Expected mIoU of CLIP ViT-B/16 in percent: 6.5 with CLS, 12.1 with LaSt (paper). SCLIP's paper: 6.5.
# The paper does not name its protocol; its CLS numbers are nearest to SCLIP's settings with a plain last block.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=script_checks.sh
source "$(dirname "$0")/script_checks.sh"

segmentation "the folder that holds leftImg8bit/ and gtFine/" cityscapes sclip "$@"
