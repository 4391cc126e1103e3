# Sourced by the scripts of tasks/, which say what the model is; this file says how a task is launched on a trained
# model. Its variables, and those of examples/mixtral/common.sh for the cluster and the layout, can be set from the
# environment; what the user adds to the command line comes last and wins.

CHECKPOINT=${CHECKPOINT:-./model_weights/$MODEL_NAME}
MAX_SEQUENCE_LENGTH=${MAX_SEQUENCE_LENGTH:-4096}
TASKS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$TASKS/../examples/mixtral/common.sh" "$@"
source "$TASKS/../examples/mixtral/models.sh"

# run_task SCRIPT FLAG...: a script of this folder with the flags of the model, on every device of this node.
run_task() {
    local script=$1
    shift
    local launch=(
        torchrun "${DISTRIBUTED_ARGS[@]}" -m ascend_patch.run "$script"
        "${ARCHITECTURE_ARGS[@]}" "$@"
        --tensor-model-parallel-size "$TP"
        --pipeline-model-parallel-size "$PP"
        --distributed-backend nccl
        --bf16
        --seq-length "$MAX_SEQUENCE_LENGTH"
        --tokenizer-type HuggingFaceTokenizer
        --tokenizer-model "$TOKENIZER_MODEL"
        --load "$CHECKPOINT"
    )
    if [[ $TP != 1 ]]; then launch+=(--sequence-parallel); fi # Megatron-LM wants it for experts
    launch+=("${EXTRA_ARGS[@]}")

    if [[ ${DRY_RUN:-0} == 1 ]]; then
        printf '%q ' "${launch[@]}"
        echo
        return
    fi
    command -v torchrun >/dev/null || fail "torchrun is not on PATH. Activate the environment that holds PyTorch."
    export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}
    exec "${launch[@]}"
}
