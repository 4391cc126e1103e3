#!/usr/bin/env bash
# Completions of Mixtral 8x7B on one node of 8 devices, TP8. CHECKPOINT is a checkpoint of Megatron-LM, or a model in
# Hugging Face's format, which is converted first. For a conversation with an Instruct model:
#   SCRIPT=tasks/inference/inference_mixtral.py bash tasks/inference/generate_mixtral_8x7b_ptd.sh
MODEL_NAME=${MODEL_NAME:-Mixtral-8x7B}
TP=${TP:-8}
SCRIPT=${SCRIPT:-$(dirname "${BASH_SOURCE[0]}")/generate.py}
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh" "$@"

run_task "$SCRIPT" \
    --num-layers "${NUM_LAYERS:-32}" \
    --hidden-size "${HIDDEN_SIZE:-4096}" \
    --ffn-hidden-size "${FFN_HIDDEN_SIZE:-14336}" \
    --num-attention-heads "${NUM_HEADS:-32}" \
    --num-query-groups "${NUM_QUERY_GROUPS:-8}" \
    --rotary-base 1000000 \
    --max-position-embeddings "${MAX_POSITION_EMBEDDINGS:-32768}" \
    "${MOE_ARGS[@]}"
