#!/usr/bin/env bash
# Full fine-tuning of Mixtral 8x7B on instructions: all weights learn, from the answers only.
# Two nodes of 8 devices, as for pretraining: TP1 PP8 EP2. The other layout that fits 16 devices of 64 GB: TP=2 PP=4 EP=2.
#
# It begins with the weights of CKPT_LOAD_DIR, at iteration 0 and without their optimizer; once CKPT_SAVE_DIR holds a
# checkpoint, the same command goes on from that. DATA_PATH is the prefix of prepared instructions, packed or padded;
# with MP_DATASET_TYPE=raw it is a file of records.
MODEL_NAME=Mixtral-8x7B
DATA_PATH=${DATA_PATH:-./dataset/$MODEL_NAME/alpaca}
CKPT_LOAD_DIR=${CKPT_LOAD_DIR:-./model_weights/$MODEL_NAME-tp1-pp8-ep2}
CKPT_SAVE_DIR=${CKPT_SAVE_DIR:-./ckpt/$MODEL_NAME-tuned}
NNODES=${NNODES:-2}
TP=${TP:-1}
PP=${PP:-8}
EP=${EP:-2}
# Instruction data is small: at most a few passes over it, in small steps, with a look at other answers often.
GLOBAL_BATCH=${GLOBAL_BATCH:-32}
TRAIN_ITERS=${TRAIN_ITERS:-500}
LR=${LR:-5.0e-6}
MIN_LR=${MIN_LR:-5.0e-7}
LR_WARMUP_FRACTION=${LR_WARMUP_FRACTION:-0.03}
SPLIT=${SPLIT:-98,2,0}
SAVE_INTERVAL=${SAVE_INTERVAL:-100}
EVAL_INTERVAL=${EVAL_INTERVAL:-50}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"
source "$(dirname "${BASH_SOURCE[0]}")/models.sh"

set_model 8x7B
set_instruction_args
run_pretraining "${MODEL_ARGS[@]}" "${INSTRUCTION_ARGS[@]}"
