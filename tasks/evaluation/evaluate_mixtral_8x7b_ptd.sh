#!/usr/bin/env bash
# Accuracy of Mixtral 8x7B on one node of 8 devices, TP8: TASK=mmlu, boolq, ceval or any task of lm-eval's.
# CHECKPOINT is a checkpoint of Megatron-LM, or a model in Hugging Face's format, which is converted first.
# DATA_PATH is the folder of the data set's own files; docs/evaluation.md says which. Set it to nothing for tasks whose
# data lm-eval downloads.
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
TASK=${TASK:-mmlu}
DATA_PATH=${DATA_PATH-./$TASK/}

export TOKENIZER_MODEL=${TOKENIZER_MODEL:-${TOKENIZER_PATH:-./model_from_hf/${MODEL_NAME:-Mixtral-8x7B}}}
export SCRIPT=$HERE/evaluate.py
TASK_ARGS=(--task "$TASK")
if [[ -n $DATA_PATH ]]; then TASK_ARGS+=(--task-data-path "$DATA_PATH"); fi
exec bash "$HERE/../inference/generate_mixtral_8x7b_ptd.sh" "${TASK_ARGS[@]}" "$@"
