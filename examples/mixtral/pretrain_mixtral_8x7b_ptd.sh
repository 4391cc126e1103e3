#!/usr/bin/env bash
# Mixtral 8x7B: 46.7B parameters, 12.9B active. Two nodes of 8 devices: TP1 PP8 EP2.
# The other layout that fits 16 devices of 64 GB: TP=2 PP=4 EP=2.
MODEL_NAME=Mixtral-8x7B
NNODES=${NNODES:-2}
TP=${TP:-1}
PP=${PP:-8}
EP=${EP:-2}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"

run_pretraining \
    --num-layers 32 \
    --hidden-size 4096 \
    --ffn-hidden-size 14336 \
    --num-attention-heads 32 \
    --num-query-groups 8 \
    --rotary-base 1000000 \
    --max-position-embeddings 32768 \
    "${MOE_ARGS[@]}"
