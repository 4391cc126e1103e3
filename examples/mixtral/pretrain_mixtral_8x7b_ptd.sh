#!/usr/bin/env bash
# Mixtral 8x7B: 46.7B parameters, 12.9B active. Two nodes of 8 devices: TP1 PP8 EP2.
# The other layout that fits 16 devices of 64 GB: TP=2 PP=4 EP=2.
MODEL_NAME=Mixtral-8x7B
NNODES=${NNODES:-2}
TP=${TP:-1}
PP=${PP:-8}
EP=${EP:-2}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"
source "$(dirname "${BASH_SOURCE[0]}")/models.sh"

set_model 8x7B
run_pretraining "${MODEL_ARGS[@]}"
