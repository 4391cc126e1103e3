#!/usr/bin/env bash
# LoRA fine-tuning of Mixtral 8x7B on instructions: adapters alone are trained. One node of 8 devices: TP2 PP2 EP2.
# CKPT_LOAD_DIR is the base, as tools/checkpoint/util.py makes it; CKPT_SAVE_DIR gets the adapters.
MODEL_NAME=Mixtral-8x7B
CKPT_SAVE_DIR=${CKPT_SAVE_DIR:-./ckpt/$MODEL_NAME-lora}
CKPT_LOAD_DIR=${CKPT_LOAD_DIR:-./model_weights/$MODEL_NAME}
DATA_PATH=${DATA_PATH:-./dataset/$MODEL_NAME/alpaca}
TP=${TP:-2}
PP=${PP:-2}
EP=${EP:-2}
# Instruction data is small: the schedule is that of full fine-tuning, with a larger rate for the few weights that learn.
GLOBAL_BATCH=${GLOBAL_BATCH:-32}
TRAIN_ITERS=${TRAIN_ITERS:-500}
LR=${LR:-1.0e-4}
MIN_LR=${MIN_LR:-1.0e-5}
LR_WARMUP_FRACTION=${LR_WARMUP_FRACTION:-0.03}
SPLIT=${SPLIT:-98,2,0}
SAVE_INTERVAL=${SAVE_INTERVAL:-100}
EVAL_INTERVAL=${EVAL_INTERVAL:-50}
LORA_R=${LORA_R:-16}
LORA_ALPHA=${LORA_ALPHA:-32}
LORA_DROPOUT=${LORA_DROPOUT:-0.0}
LORA_TARGETS=${LORA_TARGETS:-linear_qkv linear_proj linear_fc1 linear_fc2}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"
source "$(dirname "${BASH_SOURCE[0]}")/models.sh"

set_model 8x7B
set_instruction_args
run_pretraining "${MODEL_ARGS[@]}" "${INSTRUCTION_ARGS[@]}" \
    --lora-target-modules $LORA_TARGETS \
    --lora-r "$LORA_R" \
    --lora-alpha "$LORA_ALPHA" \
    --lora-dropout "$LORA_DROPOUT"
