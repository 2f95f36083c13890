#!/usr/bin/env bash
# Zero-shot accuracy on ImageNet-1k with CLIP's 80 prompts, of the weights that LaSt fine-tuning starts from and of yours.
#
#   tools/eval_zero_shot_imagenet.sh /path/to/imagenet [flag of clip/eval_zero_shot_cls.py ...]
#   WEIGHTS=/path/to/weights RUN="torchrun --nproc-per-node 8" tools/eval_zero_shot_imagenet.sh /path/to/imagenet \
#       --model "LaSt=open_clip:ViT-B-16-quickgelu@logs/last/checkpoints/epoch_10.pt" --table
#
# Nothing is downloaded. /path/to/imagenet holds val/ with a folder per class, 50,000 images
# (https://image-net.org/download.php), or is Kaggle's imagenet-object-localization-challenge. Put the files that you
# want measured into WEIGHTS (default weights/), under the names that their publishers gave them; those that are not
# there are named and left out. Behind each what open_clip publishes for it (docs/openclip_results.csv), in percent:
#
#   ViT-B-16.pt                      68.34   OpenAI, github.com/openai/CLIP
#   ViT-L-14.pt                      75.54   OpenAI
#   b16_400m.pt                      70.80   MetaCLIP, github.com/facebookresearch/MetaCLIP
#   b16_fullcc2.5b.pt                72.12   MetaCLIP
#   l14_400m.pt                      76.20   MetaCLIP
#   l14_fullcc2.5b.pt                79.17   MetaCLIP
#   EVA02_CLIP_B_psz16_s8B.pt        74.72   EVA-CLIP, huggingface.co/QuanSun/EVA-CLIP
#   EVA02_CLIP_L_psz14_s4B.pt        79.77   EVA-CLIP
#   EVA02_CLIP_L_336_psz14_s6B.pt    80.39   EVA-CLIP
#   openai_b_16.pt                   -       LaSt-ViT, release "weights" of github.com/ChengShiest/LAST-ViT
#
# One record per model goes to output/zero_shot_cls/, with --table to results/.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=script_checks.sh
source "$(dirname "$0")/script_checks.sh"

imagenet=${1:-}
weights=${WEIGHTS:-weights}
need_arguments "the first argument is ImageNet's folder, which holds val/" "$imagenet"
need_folder "$imagenet" "give ImageNet's, with val/ in it"
val=$(imagenet_split "$imagenet" val)
if [ -n "$(find -L "${val:-$imagenet}" -mindepth 1 -maxdepth 1 -type d -print -quit)" ]; then # Kaggle's val/ has none
    need_classes "${val:-$imagenet}" "clip/eval_zero_shot_cls.py --imagenet-root $imagenet"
fi

models=()
# add <file> <name of the row> <architecture>: a model of the table, if its file is there
add() {
    if [ -f "$weights/$1" ]; then
        models+=(--model "$2=open_clip:$3@$weights/$1")
    else
        echo "left out: $weights/$1 is not there"
    fi
}
add ViT-B-16.pt "CLIP ViT-B/16" ViT-B-16-quickgelu
add ViT-L-14.pt "CLIP ViT-L/14" ViT-L-14-quickgelu
add b16_400m.pt "MetaCLIP ViT-B/16, 400M" ViT-B-16-quickgelu
add b16_fullcc2.5b.pt "MetaCLIP ViT-B/16, 2.5B" ViT-B-16-quickgelu
add l14_400m.pt "MetaCLIP ViT-L/14, 400M" ViT-L-14-quickgelu
add l14_fullcc2.5b.pt "MetaCLIP ViT-L/14, 2.5B" ViT-L-14-quickgelu
add EVA02_CLIP_B_psz16_s8B.pt "EVA02-CLIP ViT-B/16" EVA02-B-16
add EVA02_CLIP_L_psz14_s4B.pt "EVA02-CLIP ViT-L/14" EVA02-L-14
add EVA02_CLIP_L_336_psz14_s6B.pt "EVA02-CLIP ViT-L/14, 336 px" EVA02-L-14-336
add openai_b_16.pt "CLIP ViT-B/16, LaSt, released" ViT-B-16-quickgelu

case " ${*:2} " in
    *" --model "* | *" --model="*) ;;
    *)
        if [ "${#models[@]}" -eq 0 ]; then
            echo "$name: error: no weights in $weights and no --model: the head of this script says where to get them" >&2
            exit 1
        fi
        ;;
esac
exec "${run[@]}" "$repository/clip/eval_zero_shot_cls.py" --imagenet-root "$imagenet" --dataset-name ImageNet-1k \
    ${models[@]+"${models[@]}"} "${@:2}"
