#!/usr/bin/env bash
# Mistral 7B v0.1: 7.24B parameters, dense, sliding-window attention. One node of 8 devices: TP2.
MODEL_NAME=Mistral-7B
TP=${TP:-2}
SEQ_LENGTH=${SEQ_LENGTH:-8192}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"

# The published window of 4096 counts the token itself; upstream's pair counts the neighbours to its left and right.
run_pretraining \
    --num-layers 32 \
    --hidden-size 4096 \
    --ffn-hidden-size 14336 \
    --num-attention-heads 32 \
    --num-query-groups 8 \
    --rotary-base 10000 \
    --max-position-embeddings 32768 \
    --window-size 4095,0
