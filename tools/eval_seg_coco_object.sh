#!/usr/bin/env bash
# Zero-shot segmentation of COCO-Object, COCO val2017, 5,000 images, 80 classes and the background (paper, Tab. 4).
#
#   tools/eval_seg_coco_object.sh /path/to/coco_stuff164k \
#       --model "CLIP ViT-B/16, CLS=open_clip:ViT-B-16-quickgelu@ViT-B-16.pt" \
#       --model "CLIP ViT-B/16, LaSt=open_clip:ViT-B-16-quickgelu@epoch_1.pt" [flag of clip/eval_zero_shot_seg.py ...]
#   RUN="torchrun --nproc-per-node 8" tools/eval_seg_coco_object.sh ...
#
# Nothing is downloaded. The folder holds images/val2017/ (val2017.zip of https://cocodataset.org) and the maps of
# stuffthingmaps_trainval2017.zip (github.com/nightrome/cocostuff), as they are or converted by
# clip/convert_coco_object.py.
# ViT-B-16.pt is OpenAI's (github.com/openai/CLIP), epoch_1.pt what clip/train_clip.py writes.
#
# Expected mIoU of CLIP ViT-B/16 in percent: 8.8 with CLS, 13.3 with LaSt (paper). SCLIP's paper: 8.1.
# The paper does not name its protocol; its CLS numbers are nearest to SCLIP's settings with a plain last block.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=script_checks.sh
source "$(dirname "$0")/script_checks.sh"

segmentation "the folder that holds images/val2017/ and the maps" coco_object sclip "$@"
