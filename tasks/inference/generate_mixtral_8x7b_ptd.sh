#!/usr/bin/env bash
# Completions of Mixtral 8x7B on one node of 8 devices, TP8. CHECKPOINT is a checkpoint of Megatron-LM, or a model in
# Hugging Face's format, which is converted first. For a conversation with an Instruct model:
#   SCRIPT=tasks/inference/inference_mixtral.py bash tasks/inference/generate_mixtral_8x7b_ptd.sh
MODEL_NAME=${MODEL_NAME:-Mixtral-8x7B}
TP=${TP:-8}
SCRIPT=${SCRIPT:-$(dirname "${BASH_SOURCE[0]}")/generate.py}
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh" "$@"

set_model 8x7B
run_task "$SCRIPT" "${MODEL_ARGS[@]}"
