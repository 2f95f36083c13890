#!/usr/bin/env bash
# Open-vocabulary detection on OV-COCO, 4,836 images of COCO's val2017: AP50 of 48 base and 17 novel classes (Tab. 5).
#
#   tools/eval_ov_coco.sh /path/to/coco --config-file ov_detection/configs/ov_coco/fvit_vitb16_last.py --num-gpus 8 \
#       train.init_checkpoint=model_final.pth [flag or override of ov_detection/lazy_train.py ...]
#
# Nothing is downloaded. /path/to/coco holds val2017/ and annotations/instances_val2017_all_2.json, which
# ov_detection/make_ov_coco.py makes of COCO's own file (https://cocodataset.org/#download). The config says which CLIP and
# which class embeddings it needs.
#
# Expected AP50 of novel classes (base, all), in percent:
#   F-ViT, EVA02-CLIP B/16, 640 px    CLS 17.5 (41.0, 34.9)    LaSt 33.3    CLIPSelf, patches 33.6
#   F-ViT, EVA02-CLIP L/14, 896 px    CLS 24.7 (53.6, 46.0)    LaSt 39.1    CLIPSelf, patches 38.4
# CLS and LaSt: the paper; CLIPSelf: Wu et al., ICLR 2024.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=script_checks.sh
source "$(dirname "$0")/script_checks.sh"

coco=${1:-}
json=$coco/annotations/instances_val2017_all_2.json
need_arguments "the first argument is the folder that holds val2017/ and annotations/" "$coco"
need_file "$json" "make it with ov_detection/make_ov_coco.py --coco $coco"
need_folder "$coco/val2017" "the head of this script says where it comes from"
exec "${run[@]}" "$repository/ov_detection/lazy_train.py" --eval-only "${@:2}" \
    "dataloader.test.dataset.json_file=$json" "dataloader.test.dataset.image_root=$coco/val2017"
