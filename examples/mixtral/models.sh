# Sourced: the published sizes of the models, as MODEL_ARGS. A smaller model of the same kind, for a trial, can be set
# from the environment; README.md has the variables.

# set_model 7B|8x7B: Mistral 7B v0.1, dense, sliding-window attention, or Mixtral 8x7B. Needs MOE_ARGS, CP
# and PARALLEL_ARGS of common.sh, and adds to the last.
set_model() {
    MODEL_ARGS=(
        --num-layers "${NUM_LAYERS:-32}"
        --hidden-size "${HIDDEN_SIZE:-4096}"
        --ffn-hidden-size "${FFN_HIDDEN_SIZE:-14336}"
        --num-attention-heads "${NUM_HEADS:-32}"
        --num-query-groups "${NUM_QUERY_GROUPS:-8}"
        --max-position-embeddings 32768
    )
    CONTEXT_ARGS=()
    case $1 in
        7B)
            # The published window of 4096 counts the token itself; upstream's pair counts the neighbours to its left
            # and right. Mistral 7B from v0.2 on has none (WINDOW_SIZE=) and another base (ROTARY_BASE=1000000).
            MODEL_ARGS+=(--rotary-base "${ROTARY_BASE:-10000}")
            local window=${WINDOW_SIZE-4095,0}
            if [[ -n $window ]]; then MODEL_ARGS+=(--window-size "$window"); fi
            # It does not slide over a sequence that goes round in pieces, which is the default.
            if [[ -n $window && $CP != 1 ]]; then CONTEXT_ARGS=(--cp-comm-type a2a); fi
            ;;
        8x7B) MODEL_ARGS+=(--rotary-base "${ROTARY_BASE:-1000000}" "${MOE_ARGS[@]}") ;;
    esac
    PARALLEL_ARGS+=("${CONTEXT_ARGS[@]}")
}
