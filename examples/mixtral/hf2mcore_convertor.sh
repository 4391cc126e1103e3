#!/usr/bin/env bash
# Hugging Face -> Megatron-LM and back, with the positional arguments of Pai-Megatron-Patch's script of this name:
#
#   hf2mcore_convertor.sh MODEL_SIZE HG_CKPT_PATH MEGATRON_PATH SOURCE_CKPT_PATH TARGET_CKPT_PATH \
#       TP PP EXTRA_VOCAB_SIZE NUM_EXPERTS EXPERTS_TOPK EP mg2hf [WS] [--OPTION ...]
#
#    1  MODEL_SIZE        7B, 8x7B or 8x22B
#    2  HG_CKPT_PATH      the original Hugging Face model: its config.json and tokenizer travel along
#    3  MEGATRON_PATH     not used: no Megatron-LM is needed
#    4  SOURCE_CKPT_PATH  what is converted
#    5  TARGET_CKPT_PATH  the result; must not be there yet
#    6  TP                tensor parallel size
#    7  PP                pipeline parallel size
#    8  EXTRA_VOCAB_SIZE  tokens to add to the vocabulary; on the way back, those that were added
#    9  NUM_EXPERTS       8; 0 for 7B
#   10  EXPERTS_TOPK      2; 0 for 7B
#   11  EP                expert parallel size; 0 or 1 for 7B
#   12  mg2hf             false: Hugging Face -> Megatron-LM
#                         true: back; the layout is read from the source, and TP, PP and EP are not used
#   13  WS                number of devices, to check the layout against
#
# Options are those of tools/checkpoint/util.py (--help), such as --ckpt-format torch. DRY_RUN=1 prints its command.
if [ -z "${BASH_VERSION:-}" ]; then exec bash "$0" "$@"; fi # so that `sh hf2mcore_convertor.sh` works

set -euo pipefail
NAMES=(MODEL_SIZE HG_CKPT_PATH MEGATRON_PATH SOURCE_CKPT_PATH TARGET_CKPT_PATH TP PP EXTRA_VOCAB_SIZE NUM_EXPERTS
    EXPERTS_TOPK EP mg2hf WS)
UTIL=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/tools/checkpoint/util.py

GIVEN=()
while (($# > 0)) && [[ $1 != --* ]]; do
    GIVEN+=("$1")
    shift
done

fail() {
    local index
    echo "${0##*/}: $* The arguments were read as" >&2
    for index in "${!GIVEN[@]}"; do
        echo "  argument $((index + 1)), ${NAMES[index]:-one too many}: ${GIVEN[index]}" >&2
    done
    exit 2
}

# whole POSITION FROM: the argument there is a whole number from FROM on.
whole() {
    local found=${GIVEN[$1 - 1]}
    [[ $found =~ ^(0|[1-9][0-9]*)$ ]] && ((found >= $2)) ||
        fail "argument $1 (${NAMES[$1 - 1]}) is '$found', but must be a whole number from $2 on."
}

if ((${#GIVEN[@]} == 0)); then
    sed -n '2,/^if /s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
if ((${#GIVEN[@]} < 12)); then
    missing=$((${#GIVEN[@]} + 1))
    fail "argument $missing (${NAMES[missing - 1]}) is missing: 12 are needed, or 13 with WS."
fi
if ((${#GIVEN[@]} > 13)); then fail "${#GIVEN[@]} arguments are too many: there are 13."; fi

SIZE=${GIVEN[0]} HF=${GIVEN[1]} SOURCE=${GIVEN[3]} TARGET=${GIVEN[4]} TP=${GIVEN[5]} PP=${GIVEN[6]} EXTRA=${GIVEN[7]}
EXPERTS=${GIVEN[8]} TOPK=${GIVEN[9]} EP=${GIVEN[10]} BACK=${GIVEN[11]} WS=${GIVEN[12]:-}

[[ $BACK == true || $BACK == false ]] || fail "argument 12 (mg2hf) is '$BACK', but must be true or false."
whole 6 1
whole 7 1
for position in 8 9 10 11; do whole $position 0; done
case $SIZE in
    7B) ((EXPERTS <= 1 && TOPK <= 1 && EP <= 1)) ||
        fail "a 7B model has no experts: arguments 9 (NUM_EXPERTS), 10 (EXPERTS_TOPK) and 11 (EP) must be 0." ;;
    8x7B | 8x22B)
        whole 9 1
        whole 10 1
        whole 11 1
        ;;
    *) fail "argument 1 (MODEL_SIZE) is '$SIZE', but must be 7B, 8x7B or 8x22B." ;;
esac
if [[ -n $WS && $BACK == false ]]; then
    whole 13 1
    # Each expert is split over the tensor parallel ranks, too.
    SHARE=$((TP * PP * (EP > 1 ? EP : 1)))
    ((WS % SHARE == 0)) || fail "argument 13 (WS) is $WS, but must be a multiple of TP x PP x EP = $SHARE."
fi

COMMAND=(python "$UTIL" --model-type GPT --load-dir "$SOURCE" --save-dir "$TARGET")
if [[ $SIZE == 7B ]]; then
    FAMILY=mistral
    COMMAND+=(--num-experts 0)
else
    FAMILY=mixtral
    COMMAND+=(--num-experts "$EXPERTS" --moe-router-topk "$TOPK")
fi
COMMAND+=(--saver "$FAMILY")
if [[ $BACK == true ]]; then
    COMMAND+=(--loader "${FAMILY}_mg" --save-model-type huggingface --hf-folder "$HF")
    if ((EXTRA > 0)); then
        VOCAB=$(sed -n 's/.*"vocab_size": *\([0-9]*\).*/\1/p' "$HF/config.json" 2>/dev/null) ||
            fail "argument 2 (HG_CKPT_PATH), $HF, has no config.json to tell how many tokens there were before."
        COMMAND+=(--true-vocab-size $((VOCAB + EXTRA)))
    fi
else
    COMMAND+=(
        --loader "${FAMILY}_hf"
        --tokenizer-model "$HF"
        --target-tensor-parallel-size "$TP"
        --target-pipeline-parallel-size "$PP"
        --extra-vocab-size "$EXTRA"
    )
    if ((EP > 1)); then COMMAND+=(--target-expert-parallel-size "$EP"); fi
fi
COMMAND+=("$@")

if [[ ${DRY_RUN:-0} == 1 ]]; then
    printf '%q ' "${COMMAND[@]}"
    echo
    exit
fi
command -v python >/dev/null || fail "python is not on PATH. Activate the environment that holds PyTorch."
exec "${COMMAND[@]}"
