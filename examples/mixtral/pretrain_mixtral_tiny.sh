#!/usr/bin/env bash
# A Mixtral in miniature (8 experts, 2 a token, grouped-query attention), for two processes of any machine: EP2.
# `make train` runs it on the two cores of a laptop; every size can be set from the environment.
MODEL_NAME=Mixtral-tiny
GPUS_PER_NODE=${GPUS_PER_NODE:-2}
EP=${EP:-2}
SEQ_LENGTH=${SEQ_LENGTH:-256}
MICRO_BATCH=${MICRO_BATCH:-4}
GLOBAL_BATCH=${GLOBAL_BATCH:-16}
TRAIN_ITERS=${TRAIN_ITERS:-120}
LR=${LR:-1.0e-3}
MIN_LR=${MIN_LR:-1.0e-4}
LR_WARMUP_FRACTION=${LR_WARMUP_FRACTION:-0.05}
SAVE_INTERVAL=${SAVE_INTERVAL:-60}
EVAL_INTERVAL=${EVAL_INTERVAL:-20}
EVAL_ITERS=${EVAL_ITERS:-2}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"

run_pretraining \
    --num-layers "${NUM_LAYERS:-4}" \
    --hidden-size "${HIDDEN_SIZE:-256}" \
    --ffn-hidden-size "${FFN_HIDDEN_SIZE:-896}" \
    --num-attention-heads "${NUM_HEADS:-8}" \
    --num-query-groups "${NUM_QUERY_GROUPS:-2}" \
    --rotary-base 1000000 \
    --max-position-embeddings "$SEQ_LENGTH" \
    "${MOE_ARGS[@]}"
