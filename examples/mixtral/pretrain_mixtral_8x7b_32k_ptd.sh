#!/usr/bin/env bash
# Mixtral 8x7B on its full context of 32768 tokens. Four nodes of 8 devices: TP8 CP4, the experts over EP4.
#
# Without TransformerEngine the default CP=4 is refused until ascend_patch has context parallelism. What works today, given
# enough memory, is CP=1 with TP8 and recomputation:
#   CP=1 bash pretrain_mixtral_8x7b_32k_ptd.sh --recompute-granularity full --recompute-method uniform --recompute-num-layers 1
MODEL_NAME=Mixtral-8x7B
CKPT_SAVE_DIR=${CKPT_SAVE_DIR:-./ckpt/Mixtral-8x7B-32k}
NNODES=${NNODES:-4}
TP=${TP:-8}
CP=${CP:-4}
EP=${EP:-4}
SEQ_LENGTH=${SEQ_LENGTH:-32768}
GLOBAL_BATCH=${GLOBAL_BATCH:-32}
CP_COMM_TYPE=${CP_COMM_TYPE:-p2p} # p2p: ring attention; a2a: Ulysses
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"

run_pretraining \
    --num-layers 32 \
    --hidden-size 4096 \
    --ffn-hidden-size 14336 \
    --num-attention-heads 32 \
    --num-query-groups 8 \
    --rotary-base 1000000 \
    --max-position-embeddings 32768 \
    --cp-comm-type "$CP_COMM_TYPE" \
    "${MOE_ARGS[@]}"
