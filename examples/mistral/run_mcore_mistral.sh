#!/usr/bin/env bash
# Pretraining and instruction tuning of Mistral 7B and Mixtral 8x7B, with the positional arguments of
# Pai-Megatron-Patch's script of this name. Without arguments it lists them; README.md has examples and variables.
# What comes after them goes to upstream last. DRY_RUN=1 shows what each argument became, and the command.
if [ -z "${BASH_VERSION:-}" ]; then exec bash "$0" "$@"; fi # so that `sh run_mcore_mistral.sh` works

set -euo pipefail

# Name, meaning, allowed: words, one of which it is, or the name of a function that checks it.
ARGUMENTS=(
    "ENV|one machine (dsw) or several (dlc)|dsw, dlc"
    "MODEL_SIZE|model|7B, 8x7B"
    "BATCH_SIZE|samples of a device at a time|whole_from_1"
    "GLOBAL_BATCH_SIZE|samples of an iteration|whole_from_1"
    "LR|learning rate|number"
    "MIN_LR|learning rate at the end|number"
    "SEQ_LEN|tokens of a sample|whole_from_1"
    "PAD_LEN|tokens to which an instruction is padded|whole_from_1"
    "PR|precision|fp16, bf16, fp8"
    "TP|tensor parallel size|whole_from_1"
    "PP|pipeline parallel size|whole_from_1"
    "CP|context parallel size|whole_from_1"
    "EP|expert parallel size|whole_from_1"
    "SP|sequence parallelism|true, false"
    "DO|distributed optimizer|true, false"
    "FL|flash attention|true, false"
    "SFT|instruction tuning, not pretraining|true, false"
    "AC|activation checkpointing|sel, full, offload, false"
    "OPTIMIZER_OFFLOAD|optimizer in host memory|false, static, auto"
    "SAVE_INTERVAL|iterations between checkpoints|whole_from_1"
    "DATASET_PATH|data to train on|path"
    "VALID_DATASET_PATH|data to validate on|path"
    "PRETRAIN_CHECKPOINT_PATH|weights to begin with, or none|path"
    "TRAIN_TOKENS_OR_ITERS|length: tokens, with SFT=true iterations|whole_from_1"
    "WARMUP_TOKENS_OR_ITERS|warm-up: tokens, with SFT=true iterations|whole_from_0"
    "OUTPUT_BASEPATH|folder of checkpoints and event files|path"
)
COUNT=${#ARGUMENTS[@]}
WRONG=()
declare -A NAMES=( # what the user knows the variables of common.sh by
    [DATA_PATH]="argument 21, DATASET_PATH"
    [VALID_DATA_PATH]="argument 22, VALID_DATASET_PATH"
    [CKPT_LOAD_DIR]="argument 23, PRETRAIN_CHECKPOINT_PATH"
)

# ---- the form of each argument

whole_from_1() { [[ $1 =~ ^[1-9][0-9]{0,17}$ ]]; }
whole_from_0() { [[ $1 == 0 ]] || whole_from_1 "$1"; }
number() { [[ $1 =~ ^([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$ ]]; }
path() { [[ -n $1 && $1 != -* ]]; }

# describe POSITION: sets NAME, MEANING and ALLOWED.
describe() { IFS='|' read -r NAME MEANING ALLOWED <<<"${ARGUMENTS[$1 - 1]}"; }

# is_allowed VALUE: as ALLOWED says.
is_allowed() {
    local word
    if declare -F -- "$ALLOWED" >/dev/null; then "$ALLOWED" "$1"; return; fi
    for word in ${ALLOWED//,/}; do
        if [[ $word == "$1" ]]; then return; fi
    done
    return 1
}

in_words() {
    case $ALLOWED in
        whole_from_?) echo "a whole number from ${ALLOWED##*_} on" ;;
        number) echo "a number such as 1e-5" ;;
        path) echo "a path" ;;
        *) echo "$ALLOWED" ;;
    esac
}

# wrong POSITION FOUND [ALLOWED]: remember what is wrong with an argument.
wrong() {
    describe "$1"
    WRONG+=("argument $1, $NAME ($MEANING): found \"$2\", allowed: ${3:-$(in_words)}")
}

refuse_wrong() {
    if ((${#WRONG[@]} == 0)); then return; fi
    printf '%s\n' "${WRONG[@]/#/${0##*/}: }" >&2
    exit 2
}

usage() {
    local position
    sed -n '2,/^if /s/^# \{0,1\}//p' "$0"
    for ((position = 1; position <= COUNT; position++)); do
        describe "$position"
        printf '%4d  %-25s %s: %s\n' "$position" "$NAME" "$MEANING" "$(in_words)"
    done
}

# read_arguments ARGUMENT...: sets a variable of its name for each, and FURTHER to the flags after them.
read_arguments() {
    local position=1
    while (($# > 0)) && [[ $1 != --* ]]; do
        if ((position <= COUNT)); then
            describe "$position"
            printf -v "$NAME" %s "$1"
            is_allowed "$1" || wrong "$position" "$1"
        else
            WRONG+=("argument $position: found \"$1\", allowed: none, there are $COUNT")
        fi
        position=$((position + 1))
        shift
    done
    FURTHER=("$@")
    for (( ; position <= COUNT; position++)); do
        describe "$position"
        WRONG+=("argument $position, $NAME ($MEANING): missing, allowed: $(in_words)")
    done
    refuse_wrong
}

# ---- what the arguments say together

# find_devices: NNODES, NODE_RANK and the address. On several machines PAI-DLC says them, with its own names.
find_devices() {
    GPUS_PER_NODE=${GPUS_PER_NODE:-${KUBERNETES_CONTAINER_RESOURCE_GPU:-8}}
    if [[ $ENV == dsw ]]; then
        NNODES=1 NODE_RANK=0 MASTER_ADDR=localhost
    else
        NNODES=${NNODES:-${WORLD_SIZE:-}} NODE_RANK=${NODE_RANK:-${RANK:-}}
        if ! { whole_from_1 "$NNODES" && whole_from_0 "$NODE_RANK" && path "${MASTER_ADDR:-}"; }; then
            wrong 1 dlc "dlc where the environment has NNODES (or WORLD_SIZE), NODE_RANK (or RANK) and MASTER_ADDR"
            NNODES=1 # to see what else is wrong
        fi
    fi
    if ! whole_from_1 "$GPUS_PER_NODE"; then
        WRONG+=("GPUS_PER_NODE=$GPUS_PER_NODE is not a positive whole number.")
        refuse_wrong
    fi
}

check_layout() {
    local devices=$((GPUS_PER_NODE * NNODES)) shares
    if ((devices % (TP * PP * CP))); then
        wrong 10 "$TP" "TP x PP x CP, now $TP x $PP x $CP, must divide the number of devices, $devices"
        return
    fi
    shares=$((devices / TP / PP))
    if [[ $MODEL_SIZE == 7B ]]; then
        ((EP == 1)) || wrong 13 "$EP" "1, as a 7B model has no experts"
    else
        ((8 % EP == 0 && shares % EP == 0)) ||
            wrong 13 "$EP" "what divides the 8 experts and the devices / TP / PP = $shares"
        [[ $TP == 1 || $SP == true ]] || wrong 14 "$SP" "true, as experts with TP of more than 1 need it"
    fi
    shares=$((BATCH_SIZE * (devices / TP / PP / CP)))
    ((GLOBAL_BATCH_SIZE % shares == 0)) ||
        wrong 4 "$GLOBAL_BATCH_SIZE" "a multiple of BATCH_SIZE x data parallel size = $shares"
}

check_data_arguments() {
    case ${MP_DATASET_TYPE:=idxmap} in
        idxmap | raw) ;;
        *) WRONG+=("MP_DATASET_TYPE: found \"$MP_DATASET_TYPE\", allowed: raw, idxmap") ;;
    esac
    if [[ $SFT == false && $MP_DATASET_TYPE == raw ]]; then
        wrong 17 false "true, as MP_DATASET_TYPE=raw is for instructions; or unset that variable"
    fi
    if [[ $SFT == true && $PAD_LEN != "$SEQ_LEN" ]]; then
        wrong 8 "$PAD_LEN" "with SFT=true the same as SEQ_LEN, $SEQ_LEN, as samples are padded to all of it"
    fi
    if [[ $PRETRAIN_CHECKPOINT_PATH == none && -z ${TOKENIZER_MODEL:-} ]]; then
        wrong 23 none "none only where TOKENIZER_MODEL names the folder of a tokenizer"
    fi
}

# count_iterations: TRAIN_ITERS and LR_WARMUP_ITERS, whole ones, of as many tokens as were asked for.
count_iterations() {
    local tokens=1
    if [[ $SFT == false ]]; then tokens=$((GLOBAL_BATCH_SIZE * SEQ_LEN)); fi
    TRAIN_ITERS=$((TRAIN_TOKENS_OR_ITERS / tokens))
    LR_WARMUP_ITERS=$((WARMUP_TOKENS_OR_ITERS / tokens))
    if ((TRAIN_ITERS == 0)); then
        wrong 24 "$TRAIN_TOKENS_OR_ITERS" "at least the tokens of one iteration, GLOBAL_BATCH_SIZE x SEQ_LEN = $tokens"
    elif ((LR_WARMUP_ITERS >= TRAIN_ITERS)); then
        wrong 25 "$WARMUP_TOKENS_OR_ITERS" "less than argument 24, $TRAIN_TOKENS_OR_ITERS"
    fi
}

check_together() {
    find_devices
    check_layout
    check_data_arguments
    count_iterations
    awk "BEGIN { exit !($MIN_LR <= $LR) }" || wrong 6 "$MIN_LR" "at most LR, $LR"
    whole_from_1 "${MP_AC_LAYERS:=1}" || WRONG+=("MP_AC_LAYERS=$MP_AC_LAYERS is not a positive whole number.")
    refuse_wrong
}

# ---- upstream's flags

# set_computing: PRECISION and COMPUTING_ARGS, of PR, AC and OPTIMIZER_OFFLOAD. ascend_patch refuses those that need
# TransformerEngine where it is missing.
set_computing() {
    PRECISION=$PR PRECISION_ARGS=() CHECKPOINTING_ARGS=() OFFLOAD_ARGS=()
    if [[ $PR == fp8 ]]; then
        PRECISION=bf16 # of the weights and of all that is no matrix product
        PRECISION_ARGS=(--fp8-format hybrid)
    fi
    case $AC in
        sel) CHECKPOINTING_ARGS=(--recompute-granularity selective) ;;
        full)
            CHECKPOINTING_ARGS=(--recompute-granularity full --recompute-method uniform)
            CHECKPOINTING_ARGS+=(--recompute-num-layers "$MP_AC_LAYERS")
            ;;
        offload) CHECKPOINTING_ARGS=(--cpu-offloading-num-layers "$MP_AC_LAYERS") ;;
    esac
    if [[ $OPTIMIZER_OFFLOAD != false ]]; then
        OFFLOAD_ARGS=(--optimizer-cpu-offload --use-precision-aware-optimizer) # all of it: upstream chooses no share
    fi
    COMPUTING_ARGS=("${PRECISION_ARGS[@]}" "${CHECKPOINTING_ARGS[@]}" "${OFFLOAD_ARGS[@]}")
}

# set_variables: those of common.sh that the arguments are not called by already.
set_variables() {
    MODEL_NAME=Mistral-$MODEL_SIZE
    MICRO_BATCH=$BATCH_SIZE
    GLOBAL_BATCH=$GLOBAL_BATCH_SIZE
    SEQ_LENGTH=$SEQ_LEN
    SEQUENCE_PARALLEL=$SP
    DISTRIBUTED_OPTIMIZER=$DO
    FLASH_ATTENTION=$FL
    DATA_PATH=$DATASET_PATH
    VALID_DATA_PATH=$VALID_DATASET_PATH
    CKPT_SAVE_DIR=$OUTPUT_BASEPATH/checkpoint
    TENSORBOARD_DIR=$OUTPUT_BASEPATH/tensorboard
    CKPT_LOAD_DIR=
    if [[ $PRETRAIN_CHECKPOINT_PATH != none ]]; then
        CKPT_LOAD_DIR=$PRETRAIN_CHECKPOINT_PATH
        # A conversion has the tokenizer travel along.
        TOKENIZER_MODEL=${TOKENIZER_MODEL:-$PRETRAIN_CHECKPOINT_PATH/huggingface}
    fi
}

# became: what upstream gets for each argument, in order.
became() {
    echo "torchrun --nproc-per-node $GPUS_PER_NODE --nnodes $NNODES --node-rank $NODE_RANK --master-addr $MASTER_ADDR"
    echo "${MODEL_ARGS[@]}"
    echo "--micro-batch-size $BATCH_SIZE"
    echo "--global-batch-size $GLOBAL_BATCH_SIZE"
    echo "--lr $LR"
    echo "--min-lr $MIN_LR"
    echo "--seq-length $SEQ_LEN"
    if [[ $SFT == true ]]; then echo "as SEQ_LEN"; else echo "nothing: text needs no padding"; fi
    echo "--$PRECISION ${PRECISION_ARGS[*]}"
    echo "--tensor-model-parallel-size $TP"
    echo "--pipeline-model-parallel-size $PP"
    echo "--context-parallel-size $CP ${CONTEXT_ARGS[*]}"
    if [[ $MODEL_SIZE == 7B ]]; then echo "nothing: no experts"; else echo "--expert-model-parallel-size $EP"; fi
    if [[ $SP == true && $TP == 1 ]]; then echo "nothing: TP is 1"; else either "$SP" --sequence-parallel; fi
    either "$DO" "--use-distributed-optimizer --overlap-param-gather"
    either "$FL" --use-flash-attn
    echo "${INSTRUCTION_ARGS[*]:-nothing}"
    echo "${CHECKPOINTING_ARGS[*]:-nothing}"
    echo "${OFFLOAD_ARGS[*]:-nothing}"
    echo "--save-interval $SAVE_INTERVAL"
    echo "--train-data-path $DATASET_PATH"
    echo "--valid-data-path $VALID_DATASET_PATH"
    echo "${CKPT_LOAD_DIR:+--pretrained-checkpoint $CKPT_LOAD_DIR }--tokenizer-model $TOKENIZER_MODEL"
    echo "--train-iters $TRAIN_ITERS"
    echo "--lr-warmup-iters $LR_WARMUP_ITERS"
    echo "--save $CKPT_SAVE_DIR --load $CKPT_SAVE_DIR --tensorboard-dir $TENSORBOARD_DIR"
}

# either SWITCH FLAGS
either() { if [[ $1 == true ]]; then echo "$2"; else echo nothing; fi; }

show_mapping() {
    local position=1 flags
    while read -r flags; do
        describe "$position"
        printf '%2d  %-24s  %-8s  %s\n' "$position" "$NAME" "${!NAME}" "$flags"
        position=$((position + 1))
    done < <(became)
}

if (($# == 0)); then
    usage >&2
    exit 2
fi
read_arguments "$@"
check_together
set_computing
set_variables
set -- "${FURTHER[@]}" # for common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../mixtral/common.sh"
source "$(dirname "${BASH_SOURCE[0]}")/../mixtral/models.sh"

set_model "$MODEL_SIZE"
INSTRUCTION_ARGS=()
if [[ $SFT == true ]]; then set_instruction_args; fi
if [[ ${DRY_RUN:-0} == 1 ]]; then show_mapping; fi
run_pretraining "${MODEL_ARGS[@]}" "${COMPUTING_ARGS[@]}" "${INSTRUCTION_ARGS[@]}"
