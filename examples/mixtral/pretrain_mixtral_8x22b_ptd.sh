#!/usr/bin/env bash
# Mixtral 8x22B: 140.6B parameters, 39.1B active. Eight nodes of 8 devices: TP2 PP8 EP4.
MODEL_NAME=Mixtral-8x22B
NNODES=${NNODES:-8}
TP=${TP:-2}
PP=${PP:-8}
EP=${EP:-4}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"

run_pretraining \
    --num-layers 56 \
    --hidden-size 6144 \
    --ffn-hidden-size 16384 \
    --num-attention-heads 48 \
    --num-query-groups 8 \
    --rotary-base 1000000 \
    --max-position-embeddings 65536 \
    "${MOE_ARGS[@]}"
