#!/usr/bin/env bash
# Zero-shot segmentation of COCO-Stuff 164k, COCO val2017, 5,000 images, 171 classes (paper, Tab. 4).
#
#   tools/eval_seg_coco_stuff.sh /path/to/coco_stuff164k \
#       --model "CLIP ViT-B/16, CLS=open_clip:ViT-B-16-quickgelu@ViT-B-16.pt" \
#       --model "CLIP ViT-B/16, LaSt=open_clip:ViT-B-16-quickgelu@epoch_1.pt" [flag of clip/eval_zero_shot_seg.py ...]
#   RUN="torchrun --nproc-per-node 8" tools/eval_seg_coco_stuff.sh ...
#
# Nothing is downloaded. The folder holds images/val2017/ (val2017.zip of https://cocodataset.org) and the maps of
# stuffthingmaps_trainval2017.zip (github.com/nightrome/cocostuff), as they are or converted by
# clip/convert_coco_stuff.py.
# ViT-B-16.pt is OpenAI's (github.com/openai/CLIP), epoch_1.pt what clip/train_clip.py writes.
#
# Expected mIoU of CLIP ViT-B/16 in percent: 7.2 with CLS, 11.8 with LaSt (paper).
# The paper does not name its protocol; its CLS number is nearer to NACLIP's settings (336 pixels) with a plain last
# block and without PAMR than to SCLIP's (448 pixels; 5.7 in SCLIP's paper), which are --protocol sclip.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=script_checks.sh
source "$(dirname "$0")/script_checks.sh"

segmentation "the folder that holds images/val2017/ and the maps" coco_stuff naclip "${1:-}" --pamr off "${@:2}"
