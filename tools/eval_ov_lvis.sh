#!/usr/bin/env bash
# Open-vocabulary detection on OV-LVIS, 19,809 images: mask AP of all classes and APr of the 337 rare, novel ones
# (Tab. 5).
#
#   tools/eval_ov_lvis.sh /path/to/coco /path/to/lvis --config-file ov_detection/configs/ov_lvis/fvit_vitb16_last.py \
#       --num-gpus 8 train.init_checkpoint=model_final.pth [flag or override of ov_detection/lazy_train.py ...]
#
# Nothing is downloaded. /path/to/coco holds train2017/ and val2017/ (https://cocodataset.org/#download; LVIS's
# validation images are of both), /path/to/lvis holds lvis_v1_val.json (https://www.lvisdataset.org), which
# ov_detection/make_ov_lvis.py checks. The config says which CLIP and which class embeddings it needs.
#
# Expected mask APr (APc, APf, AP), in percent:
#   F-ViT, EVA02-CLIP B/16, 1024 px    CLS 11.5 (12.3, 20.6, 15.4)    LaSt 22.8    CLIPSelf, patches 25.3
#   F-ViT, EVA02-CLIP L/14, 896 px     CLS 24.2 (27.9, 31.5, 28.7)    LaSt 32.1    CLIPSelf, patches 34.9
# CLS and LaSt: the paper; CLIPSelf: Wu et al., ICLR 2024.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=script_checks.sh
source "$(dirname "$0")/script_checks.sh"

coco=${1:-}
lvis=${2:-}
json=$lvis/lvis_v1_val.json
need_arguments "the first two arguments are COCO's folder of images and LVIS's of annotations" "$coco" "$lvis"
origin="the head of this script says where it comes from"
need_file "$json" "$origin"
need_folder "$coco/train2017" "$origin"
need_folder "$coco/val2017" "$origin"
exec "${run[@]}" "$repository/ov_detection/lazy_train.py" --eval-only "${@:3}" \
    "dataloader.test.dataset.json_file=$json" "dataloader.test.dataset.image_root=$coco"
