"""The router's top-k, with one backward kernel instead of a chain of scatters."""

from collections.abc import Callable
from functools import wraps

from ascend_patch.engine.patch import Patch
from ascend_patch.features.conditions import without_transformer_engine


def topk_routing_with_score_function(original: Callable) -> Callable:
    """``logits [T, E]`` -> ``(probs [T, E], routing_map [T, E])`` for softmax scores; the rest is upstream's."""

    @wraps(original)
    def routing(logits, topk, use_pre_softmax=False, *args, **kwargs):
        plain = kwargs.get("score_function", "softmax") == "softmax" and not args
        special = {name for name, value in kwargs.items() if value and name not in ("score_function", "fused")}
        if not plain or special:
            return original(logits, topk, use_pre_softmax, *args, **kwargs)
        from ascend_patch.ops.topk_softmax import topk_softmax

        return topk_softmax(logits, topk, pre_softmax=use_pre_softmax)

    return routing


def compute_routing_scores_for_aux_loss(original: Callable) -> Callable:
    """``logits [T, E]`` -> ``(routing_map [T, E], scores [T, E])`` for softmax scores; the rest is upstream's."""

    @wraps(original)
    def scores(logits, topk, score_function, fused=False, padding_mask=None):
        # Upstream's scores are float32 whatever the logits are; the operator's are float64 for float64.
        if score_function != "softmax" or fused or padding_mask is not None or logits.element_size() > 4:
            return original(logits, topk, score_function, fused, padding_mask)
        from ascend_patch.ops.topk_softmax import balancing_scores

        return balancing_scores(logits, topk)

    return scores


#: What ``te_general_gemm`` is where TransformerEngine is missing, from 0.17 on.
NO_GENERAL_GEMM = None

PATCHES = (
    Patch(
        id="moe.router_gemm",
        target="megatron.core.transformer.moe.moe_utils:te_general_gemm",
        impl="ascend_patch.features.router:NO_GENERAL_GEMM",
        mode="replace",
        upstream=">=0.16.1,<0.17",
        reason="0.16.1 leaves the name undefined without TransformerEngine: a NameError in every MoE layer.",
        remove_when="0.16 is no longer supported.",
        when=without_transformer_engine,
    ),
    Patch(
        id="moe.router_topk",
        target="megatron.core.transformer.moe.moe_utils:topk_routing_with_score_function",
        impl="ascend_patch.features.router:topk_routing_with_score_function",
        mode="wrap",
        upstream=">=0.16.1,<0.20",
        reason=(
            "Mixtral's router (top-k, then softmax over the k) is six operators and two scatters upstream; its fused "
            "form (--moe-router-fusion) is TransformerEngine's."
        ),
        remove_when="upstream's unfused router is one kernel on npu.",
        when=without_transformer_engine,
    ),
    Patch(
        id="moe.router_aux_loss",
        target="megatron.core.transformer.moe.moe_utils:compute_routing_scores_for_aux_loss",
        impl="ascend_patch.features.router:compute_routing_scores_for_aux_loss",
        mode="wrap",
        upstream=">=0.16.1,<0.20",
        reason=(
            "The balancing losses route a second time: softmax, top-k, and a map made in four steps; its fused form "
            "(--moe-router-fusion) is TransformerEngine's."
        ),
        remove_when="upstream's unfused scores are one kernel on npu.",
        when=without_transformer_engine,
    ),
)
