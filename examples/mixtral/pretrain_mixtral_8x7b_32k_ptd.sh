#!/usr/bin/env bash
# Mixtral 8x7B on its full context of 32768 tokens. Four nodes of 8 devices: TP8 CP4, the experts over EP4.
#
# Where memory does not suffice, recomputation goes to the end of the command:
#   --recompute-granularity full --recompute-method uniform --recompute-num-layers 1
MODEL_NAME=Mixtral-8x7B
CKPT_SAVE_DIR=${CKPT_SAVE_DIR:-./ckpt/Mixtral-8x7B-32k}
NNODES=${NNODES:-4}
TP=${TP:-8}
CP=${CP:-4}
EP=${EP:-4}
SEQ_LENGTH=${SEQ_LENGTH:-32768}
GLOBAL_BATCH=${GLOBAL_BATCH:-32}
CP_COMM_TYPE=${CP_COMM_TYPE:-p2p} # p2p: ring attention; a2a: Ulysses; allgather
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"
source "$(dirname "${BASH_SOURCE[0]}")/models.sh"

set_model 8x7B
# A mask of sequence x sequence would be a gigabyte a sample, and causal attention needs none.
run_pretraining --cp-comm-type "$CP_COMM_TYPE" --no-create-attention-mask-in-dataloader "${MODEL_ARGS[@]}"
