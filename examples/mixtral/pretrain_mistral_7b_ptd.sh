#!/usr/bin/env bash
# Mistral 7B v0.1: 7.24B parameters, dense, sliding-window attention. One node of 8 devices: TP2.
MODEL_NAME=Mistral-7B
TP=${TP:-2}
SEQ_LENGTH=${SEQ_LENGTH:-8192}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"
source "$(dirname "${BASH_SOURCE[0]}")/models.sh"

set_model 7B
run_pretraining "${MODEL_ARGS[@]}"
