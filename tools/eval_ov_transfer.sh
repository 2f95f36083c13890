#!/usr/bin/env bash
# A detector of OV-LVIS on another data set: box AP of COCO's 80 classes (val2017, 5,000 images) or of the 365 of
# Objects365 v1 (val, 30,310 images), none of which counts as novel.
#
#   tools/eval_ov_transfer.sh coco /path/to/coco --num-gpus 8 \
#       --config-file ov_detection/configs/transfer/fvit_vitl14_last_coco.py \
#       train.init_checkpoint=model_final.pth [flag or override of ov_detection/lazy_train.py ...]
#   tools/eval_ov_transfer.sh objects365 /path/to/objects365 --num-gpus 8 \
#       --config-file ov_detection/configs/transfer/fvit_vitl14_last_objects365.py ...
#
# Nothing is downloaded. /path/to/coco holds val2017/ and annotations/instances_val2017.json
# (https://cocodataset.org/#download), /path/to/objects365 holds val/ and objects365_val.json (https://www.objects365.org);
# docs/data.md says what to do where its annotations share ids. The paper has no such number.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=script_checks.sh
source "$(dirname "$0")/script_checks.sh"

set=${1:-}
data=${2:-}
need_arguments "the first two arguments are coco or objects365, and its folder" "$set" "$data"
case $set in
coco) json=$data/annotations/instances_val2017.json images=$data/val2017 ;;
objects365) json=$data/objects365_val.json images=$data/val ;;
*) fail "the first argument is coco or objects365, got $set" ;;
esac
origin="the head of this script says where it comes from"
need_file "$json" "$origin"
need_folder "$images" "$origin"
exec "${run[@]}" "$repository/ov_detection/lazy_train.py" --eval-only "${@:3}" \
    "dataloader.test.dataset.json_file=$json" "dataloader.test.dataset.image_root=$images"
