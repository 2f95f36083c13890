#!/usr/bin/env bash
# Every figure of the paper's analysis (section 4, and figures 5 to 9) for one model, or for several side by side.
#
#   tools/reproduce_analysis.sh /path/to/imagenet OUT MODEL [MODEL ...]
#   tools/reproduce_analysis.sh /path/to/imagenet output/analysis "LaSt=cls_pretrain/conf.py@ViT_190k.pth"
#   RUNS="output/vitb16_cls output/resnet50_in1k" tools/reproduce_analysis.sh ...      # with figure 3
#
# /path/to/imagenet holds val/<wnid>/*.JPEG and, beside it, Annotations/CLS-LOC/val/*.xml (other places: BOXES). MODEL is
# [NAME=]SPEC[@CHECKPOINT], as `visualization/make_report.py --help` says. Pictures and the report go to OUT, numbers
# to output/. RUNS are folders of training runs that were evaluated on the way (dataloader.test.dataset.boxes=True), which
# figure 3 needs; without them it is left out, and the script says so. RUN is the launcher, "python" by default, or
# "torchrun --nproc-per-node 8"; PROBE_IMAGES how many images the masking probe sees, at 28 passes each; default all.
#
# Figure 4 and table 2 compare models that were trained differently: train cls_pretrain/configs/vitb_large_patch_in1k.py,
# vits16_window_1_5_9_11_in1k.py and vits16_window_all_in1k.py, and give their checkpoints here as MODELs.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=script_checks.sh
source "$(dirname "$0")/script_checks.sh"

[ "$#" -ge 3 ] || fail "give the ImageNet folder, an output folder and at least one model"
imagenet=$1
out=$2
shift 2
boxes=${BOXES:-$imagenet/Annotations/CLS-LOC/val}
need_folder "$imagenet/val" "ImageNet's validation images are needed"
need_folder "$boxes" "ImageNet's XML boxes are needed"
scripts=$repository/visualization
models=()
for model in "$@"; do
    models+=(--model "$model")
done
mkdir -p "$out"

# figure <title> <script> <arguments>: one step, announced; single: the same in one process, for a few images need no more
figure() {
    echo "== $1"
    "${run[@]}" "$scripts/$2" "${models[@]}" "${@:3}"
}
single() {
    local run=(python)
    figure "$@"
}
images=(--images "$imagenet/val" --boxes "$boxes")

figure "Tables 1 and 3: Point-in-Box, high norm" evaluate_patch_hit.py --imagenet-root "$imagenet" \
    --imagenet-label-dir "$boxes"
figure "The same after every block, with AUROC and CorLoc" evaluate_layers.py --imagenet-root "$imagenet" \
    --imagenet-label-dir "$boxes" --figure "$out/layers.png"
figure "Figure 2a: patch scores, object against background" visualize_patch_score_distribution.py "${images[@]}" \
    --figure "$out/figure_2a_scores.png"
figure "Figure 2b: masking probe" probe_masking.py --imagenet-root "$imagenet" \
    ${PROBE_IMAGES:+--num-images "$PROBE_IMAGES"} --figure "$out/figure_2b_masking.png"
if [ -n "${RUNS:-}" ]; then
    echo "== Figure 3: accuracy and Point-in-Box over training"
    curves=()
    for folder in $RUNS; do
        curves+=(--run "$folder")
    done
    python "$scripts/plot_dynamics.py" "${curves[@]}" --figure "$out/figure_3_dynamics.png"
else
    echo "== Figure 3 left out: RUNS names no training runs"
fi
single "Figure 5: votes" visualize_votes.py "${images[@]}" --figure "$out/figure_5_votes.png"
figure "Selection frequency by position" visualize_token_selection.py "${images[@]}" --figure "$out/token_selection.png"
figure "Figures 6, 8, 9, 13, 14: norms" visualize_norms.py "${images[@]}" --figure "$out/figure_6_norms.png"
figure "Figure 7: PCA" visualize_pca.py "${images[@]}" --figure "$out/figure_7_pca.png"
single "Report: everything on one page" make_report.py "${images[@]}" --out "$out/report"
