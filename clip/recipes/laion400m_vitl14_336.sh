#!/usr/bin/env bash
# LaSt-ViT-L/14 at 336 pixels with text supervision: table 10 of the paper, right column. LAION-400M, fine-tuned.
#
#   clip/recipes/laion400m_vitl14_336.sh '/data/laion400m/{00000..41454}.tar' vitl14_openai_last [--dry-run]
#   MODEL=ViT-L-14-quickgelu PRETRAINED=metaclip_400m clip/recipes/laion400m_vitl14_336.sh SHARDS vitl14_metaclip_last \
#       --force-image-size 336
#   MODEL=EVA02-L-14-336 PRETRAINED=merged2b_s6b_b61k clip/recipes/laion400m_vitl14_336.sh SHARDS vitl14_eva_last
#
# Step: 32 GPUs x 128 = 4,096 samples (the paper's "4k"), here as 4 nodes of 8; on one node of 8 BATCH=128 needs
# --accum-freq 4, or BATCH=512 with --grad-checkpointing.
# Run: 0.64B samples / 4,096 = 156,250 steps, in 10 epochs of 64,000,000 samples: 15,625 steps each, which open_clip
# rounds up to a multiple of the 8 workers, 15,632; so 156,320 steps, 0.6403B samples.
# More than one node: start this script on each, with NODES and, on all alike, RENDEZVOUS=<host of the first>:29500.
# Slurm: the same flags behind `srun python clip/train_clip.py`, as in laion400m_vitb16.sh.
set -euo pipefail
shards=${1:?shards, such as /data/laion400m/{00000..41454\}.tar} name=${2:?name of the run}
scripts=$(cd "$(dirname "$0")/.." && pwd)
torchrun --nnodes "${NODES:-4}" --nproc-per-node "${GPUS:-8}" --rdzv-backend c10d --rdzv-id "$name" \
    --rdzv-endpoint "${RENDEZVOUS:-localhost:29500}" -- "$scripts/train_clip.py" \
    --model "${MODEL:-ViT-L-14-336-quickgelu}" --pretrained "${PRETRAINED:-openai}" --pooling last \
    --train-data "$shards" --dataset-type webdataset --dataset-resampled --train-num-samples 64000000 --epochs 10 \
    --batch-size "${BATCH:-128}" --lr 2e-3 --wd 0.02 --beta1 0.9 --beta2 0.98 --eps 1e-6 --warmup 2000 \
    --grad-clip-norm 1.0 --precision amp_bf16 --local-loss --gather-with-grad --grad-checkpointing --workers 8 \
    --logs "${LOGS:-output}" --name "$name" "${@:3}"
