# Sourced by the scripts of this folder, which say what the model is; this file says how it is trained and launched.
# Every flag is upstream's own; what the user adds to the command line comes last and wins. The variables below can be
# set from the environment; README.md explains them.

set -euo pipefail
EXTRA_ARGS=("$@")

fail() { echo "${0##*/}: $*" >&2; exit 1; }

# called VARIABLE: what the user of this script knows it by.
if ! declare -p NAMES >/dev/null 2>&1; then declare -A NAMES=(); fi
called() { echo "${NAMES[$1]:-$1}"; }

# ---- where things are
MEGATRON_PATH=${MEGATRON_PATH:-}
DATA_PATH=${DATA_PATH:-./dataset/$MODEL_NAME/alpaca_text_document}
VALID_DATA_PATH=${VALID_DATA_PATH:-}
TOKENIZER_MODEL=${TOKENIZER_MODEL:-./model_from_hf/$MODEL_NAME}
CKPT_SAVE_DIR=${CKPT_SAVE_DIR:-./ckpt/$MODEL_NAME}
CKPT_LOAD_DIR=${CKPT_LOAD_DIR:-}
TENSORBOARD_DIR=${TENSORBOARD_DIR:-$CKPT_SAVE_DIR/tensorboard}
DATA_CACHE_PATH=${DATA_CACHE_PATH:-}

# ---- the cluster: run the script on every node with its own NODE_RANK
GPUS_PER_NODE=${GPUS_PER_NODE:-8}
MASTER_ADDR=${MASTER_ADDR:-localhost}
MASTER_PORT=${MASTER_PORT:-6000}
NNODES=${NNODES:-1}
NODE_RANK=${NODE_RANK:-0}
MAX_RESTARTS=${MAX_RESTARTS:-0}
WORLD_SIZE=$((GPUS_PER_NODE * NNODES))

# ---- parallel sizes
TP=${TP:-1}
PP=${PP:-1}
EP=${EP:-1}
CP=${CP:-1}
SEQUENCE_PARALLEL=${SEQUENCE_PARALLEL:-true} # where TP is more than 1

# ---- how it computes
PRECISION=${PRECISION:-bf16}
DISTRIBUTED_OPTIMIZER=${DISTRIBUTED_OPTIMIZER:-true}
FLASH_ATTENTION=${FLASH_ATTENTION:-true}

# ---- batch and schedule
MICRO_BATCH=${MICRO_BATCH:-1}
GLOBAL_BATCH=${GLOBAL_BATCH:-128}
SEQ_LENGTH=${SEQ_LENGTH:-4096}
TRAIN_ITERS=${TRAIN_ITERS:-2000}
LR=${LR:-1.0e-5}
MIN_LR=${MIN_LR:-1.0e-6}
LR_WARMUP_FRACTION=${LR_WARMUP_FRACTION:-0.01}
LR_WARMUP_ITERS=${LR_WARMUP_ITERS:-}
SEED=${SEED:-1234}

# ---- data, evaluation and saving
SPLIT=${SPLIT:-949,50,1}
NUM_WORKERS=${NUM_WORKERS:-2}
LOG_INTERVAL=${LOG_INTERVAL:-1}
SAVE_INTERVAL=${SAVE_INTERVAL:-1000}
EVAL_INTERVAL=${EVAL_INTERVAL:-1000}
EVAL_ITERS=${EVAL_ITERS:-10}

DISTRIBUTED_ARGS=(
    --nproc-per-node "$GPUS_PER_NODE"
    --nnodes "$NNODES"
    --node-rank "$NODE_RANK"
    --master-addr "$MASTER_ADDR"
    --master-port "$MASTER_PORT"
    --max-restarts "$MAX_RESTARTS" # of all processes, from the last checkpoint, when one of them ended
)

# What every model of this family has.
ARCHITECTURE_ARGS=(
    --group-query-attention
    --position-embedding-type rope
    --normalization RMSNorm
    --norm-epsilon 1e-5
    --swiglu
    --disable-bias-linear
    --untie-embeddings-and-output-weights
    --attention-dropout 0.0
    --hidden-dropout 0.0
    --init-method-std 0.02
    --make-vocab-size-divisible-by 1
)

# A dropless mixture of eight experts, two a token. Only the Mixtral scripts use it.
MOE_ARGS=(
    --num-experts 8
    --moe-router-topk 2
    --moe-router-load-balancing-type aux_loss
    --moe-aux-loss-coeff 1e-2
    --moe-token-dispatcher-type alltoall
    --moe-grouped-gemm
    --moe-permute-fusion
    --expert-model-parallel-size "$EP"
)

PARALLEL_ARGS=(
    --tensor-model-parallel-size "$TP"
    --pipeline-model-parallel-size "$PP"
    --context-parallel-size "$CP"
    --distributed-backend nccl
    --overlap-grad-reduce
    --"$PRECISION"
)
if [[ $DISTRIBUTED_OPTIMIZER == true ]]; then PARALLEL_ARGS+=(--use-distributed-optimizer --overlap-param-gather); fi
if [[ $FLASH_ATTENTION == true ]]; then PARALLEL_ARGS+=(--use-flash-attn); fi
if [[ $TP != 1 && $SEQUENCE_PARALLEL == true ]]; then PARALLEL_ARGS+=(--sequence-parallel); fi

TRAINING_ARGS=(
    --seq-length "$SEQ_LENGTH"
    --micro-batch-size "$MICRO_BATCH"
    --global-batch-size "$GLOBAL_BATCH"
    --train-iters "$TRAIN_ITERS"
    --lr "$LR"
    --min-lr "$MIN_LR"
    --lr-decay-style cosine
    --weight-decay 0.1
    --adam-beta1 0.9
    --adam-beta2 0.95
    --clip-grad 1.0
    --seed "$SEED"
)
if [[ -n $LR_WARMUP_ITERS ]]; then
    TRAINING_ARGS+=(--lr-warmup-iters "$LR_WARMUP_ITERS")
else
    TRAINING_ARGS+=(--lr-warmup-fraction "$LR_WARMUP_FRACTION")
fi

DATA_ARGS=(
    --tokenizer-type HuggingFaceTokenizer
    --tokenizer-model "$TOKENIZER_MODEL"
    --num-workers "$NUM_WORKERS"
)
# Paths are split at spaces: "0.7 first 0.3 second" blends two sets.
if [[ -n $VALID_DATA_PATH ]]; then
    DATA_ARGS+=(--train-data-path $DATA_PATH --valid-data-path $VALID_DATA_PATH)
else
    DATA_ARGS+=(--data-path $DATA_PATH --split "$SPLIT")
fi
if [[ -n $DATA_CACHE_PATH ]]; then DATA_ARGS+=(--data-cache-path "$DATA_CACHE_PATH"); fi

OUTPUT_ARGS=(
    --save "$CKPT_SAVE_DIR"
    --load "$CKPT_SAVE_DIR"
    --save-interval "$SAVE_INTERVAL"
    --eval-interval "$EVAL_INTERVAL"
    --eval-iters "$EVAL_ITERS"
    --log-interval "$LOG_INTERVAL"
    --log-throughput
    --tensorboard-dir "$TENSORBOARD_DIR"
)
# Upstream takes these weights, and begins at iteration 0 with a new optimizer, only while there is nothing to resume
# from: a run that is started again goes on where it saved.
if [[ -n $CKPT_LOAD_DIR ]]; then OUTPUT_ARGS+=(--pretrained-checkpoint "$CKPT_LOAD_DIR"); fi

# set_instruction_args: the data is instructions, of which the answers are learned. CONVERSATIONS=apart keeps those in a
# packed sample from seeing one another; together needs no packed samples, and so allows a MICRO_BATCH of more than 1
# with pipeline stages, and before 0.19. Needs CONTEXT_ARGS of set_model.
set_instruction_args() {
    case ${CONVERSATIONS:-apart} in
        apart)
            INSTRUCTION_ARGS=(--sft)
            # The default goes round with pieces of a sequence, and takes no packed ones.
            if [[ $CP != 1 && -z ${CONTEXT_ARGS[*]} ]]; then
                CONTEXT_ARGS=(--cp-comm-type "${CP_COMM_TYPE:-a2a}")
                PARALLEL_ARGS+=("${CONTEXT_ARGS[@]}")
            fi
            ;;
        together) INSTRUCTION_ARGS=(--is-instruction-dataset) ;;
        *) fail "CONVERSATIONS=$CONVERSATIONS is neither apart nor together." ;;
    esac
    INSTRUCTION_ARGS+=(--no-create-attention-mask-in-dataloader)
}

check_settings() {
    local name
    for name in GPUS_PER_NODE NNODES TP PP EP CP MICRO_BATCH GLOBAL_BATCH SEQ_LENGTH TRAIN_ITERS; do
        [[ ${!name} =~ ^[1-9][0-9]*$ ]] || fail "$name=${!name} is not a positive whole number."
    done
    for name in SEQUENCE_PARALLEL DISTRIBUTED_OPTIMIZER FLASH_ATTENTION; do
        [[ ${!name} == true || ${!name} == false ]] || fail "$name=${!name} is neither true nor false."
    done
    [[ $PRECISION == bf16 || $PRECISION == fp16 ]] || fail "PRECISION=$PRECISION is neither bf16 nor fp16."
}

holds_checkpoint() { [[ -f $1/latest_checkpointed_iteration.txt ]]; }

# check_data VARIABLE: the path, or the blend, that it holds is there.
check_data() {
    local name word
    name=$(called "$1")
    for word in ${!1}; do
        if [[ $word =~ ^[0-9.]+$ ]]; then continue; fi # the weight of a blend
        if [[ ${MP_DATASET_TYPE:-} == raw ]]; then
            [[ -f $word ]] || fail "$name: MP_DATASET_TYPE=raw reads a file of records, and $word is none."
            continue
        fi
        if [[ -f ${word}_packed_input_ids_document.idx ]]; then continue; fi # instructions
        [[ -f $word.bin && -f $word.idx ]] ||
            fail "$name: $word.bin and $word.idx are not both there. Name the common prefix of the two files," \
                "as tools/preprocess_data.py prints it."
    done
}

check_paths() {
    if [[ -n $MEGATRON_PATH && ! -f $MEGATRON_PATH/pretrain_gpt.py ]]; then
        fail "MEGATRON_PATH=$MEGATRON_PATH has no pretrain_gpt.py. Point it at the root of a Megatron-LM checkout," \
            "or unset it to use the installed megatron-core."
    fi
    check_data DATA_PATH
    check_data VALID_DATA_PATH
    [[ -f $TOKENIZER_MODEL/tokenizer.model || -f $TOKENIZER_MODEL/tokenizer.json ]] ||
        fail "TOKENIZER_MODEL=$TOKENIZER_MODEL is not a Hugging Face tokenizer folder: it holds neither" \
            "tokenizer.model nor tokenizer.json."
    if [[ -n $CKPT_LOAD_DIR ]] && ! holds_checkpoint "$CKPT_SAVE_DIR" && ! holds_checkpoint "$CKPT_LOAD_DIR"; then
        fail "$(called CKPT_LOAD_DIR)=$CKPT_LOAD_DIR holds no Megatron checkpoint (no latest_checkpointed_iteration.txt)." \
            "Unset it to start anew or to resume from CKPT_SAVE_DIR."
    fi
}

# run_pretraining FLAG...: upstream's training with the flags of the model, on every device of this node.
run_pretraining() {
    check_settings
    local launch=(torchrun "${DISTRIBUTED_ARGS[@]}")
    if [[ -n $MEGATRON_PATH ]]; then
        launch+=("$MEGATRON_PATH/pretrain_gpt.py")
    else
        launch+=(-m ascend_patch.run)
    fi
    launch+=(
        "${ARCHITECTURE_ARGS[@]}" "$@"
        "${PARALLEL_ARGS[@]}" "${TRAINING_ARGS[@]}" "${DATA_ARGS[@]}" "${OUTPUT_ARGS[@]}" "${EXTRA_ARGS[@]}"
    )

    if [[ ${DRY_RUN:-0} == 1 ]]; then
        printf '%q ' "${launch[@]}"
        echo
        return
    fi
    check_paths
    command -v torchrun >/dev/null || fail "torchrun is not on PATH. Activate the environment that holds PyTorch."
    export ASCEND_PATCH=1
    export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1} # upstream wants it for overlapped communication
    mkdir -p "$CKPT_SAVE_DIR"
    exec "${launch[@]}"
}
