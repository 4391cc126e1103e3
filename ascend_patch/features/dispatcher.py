"""``--moe-permute-fusion``: sorting tokens by expert, and back, in single kernels.

Upstream's three functions call TransformerEngine's kernels when they are told to be ``fused``. Wrapped, they
call ours in that case and are untouched otherwise. The five names at the end are what
``TransformerConfig.__post_init__`` looks for before it accepts the flag.
"""

from collections.abc import Callable
from functools import partial, wraps

from ascend_patch.engine.patch import Patch
from ascend_patch.features.conditions import without_transformer_engine


def permute(original: Callable) -> Callable:
    """Tokens ``[T, H]``, routing_map ``[T, E]`` -> tokens sorted by expert, and what upstream returns beside them."""

    @wraps(original)
    def fused_or_original(
        tokens,
        routing_map,
        probs=None,
        num_out_tokens=None,
        fused=False,
        drop_and_pad=False,
        tokens_per_expert=None,
        **kwargs,
    ):
        options = {"drop_and_pad": drop_and_pad, **kwargs}
        if tokens_per_expert is not None:
            options["tokens_per_expert"] = tokens_per_expert
        if not fused or drop_and_pad or num_out_tokens is None:
            return original(tokens, routing_map, probs, num_out_tokens, **options)
        from ascend_patch.compat.moe import permute_result
        from ascend_patch.ops.permute import permute

        return permute_result(*permute(tokens, routing_map.bool(), probs, num_out_tokens), tokens_per_expert)

    return fused_or_original


def unpermute(original: Callable) -> Callable:
    """The inverse of :func:`permute`: each token is the (weighted) sum of its copies."""

    @wraps(original)
    def fused_or_original(
        permuted_tokens,
        sorted_indices,
        restore_shape,
        probs=None,
        routing_map=None,
        fused=False,
        drop_and_pad=False,
        **kwargs,
    ):
        if not fused or drop_and_pad or kwargs.get("pad_offsets") is not None:
            return original(
                permuted_tokens, sorted_indices, restore_shape, probs, routing_map, drop_and_pad=drop_and_pad, **kwargs
            )
        from ascend_patch.ops.permute import unpermute

        return unpermute(permuted_tokens, sorted_indices, restore_shape, probs, routing_map)

    return fused_or_original


def sort_chunks_by_idxs(original: Callable) -> Callable:
    """Reorder the chunks of ``input`` (one for each expert and rank) between rank order and expert order."""

    @wraps(original)
    def fused_or_original(input, split_sizes, sorted_idxs, probs=None, fused=False):
        if not fused:
            return original(input, split_sizes, sorted_idxs, probs)
        from ascend_patch.ops.permute import sort_chunks

        return sort_chunks(input, split_sizes, sorted_idxs, probs)

    return fused_or_original


def allgather_dispatch_postprocess(original: Callable) -> Callable:
    """``MoEAllGatherTokenDispatcher.dispatch_postprocess``: probabilities permuted together with their tokens.

    Upstream selects them by the map, and the host waits to learn how many there are, which it already knows.
    """

    @wraps(original)
    def fused_or_original(self, hidden_states, probs):
        if not self.config.moe_permute_fusion:
            return original(self, hidden_states, probs)
        from megatron.core.transformer.moe.token_dispatcher import permute

        self.hidden_shape_before_permute = hidden_states.shape
        self.local_map, self.local_probs = self.routing_map, probs
        if self.num_local_experts < self.routing_map.shape[1]:
            local = slice(self.local_expert_indices[0], self.local_expert_indices[-1] + 1)
            self.local_map, self.local_probs = self.routing_map[:, local].contiguous(), probs[:, local].contiguous()
        tokens_per_expert = self.local_map.sum(dim=0).long().cpu()
        permuted, self.local_probs, self.reversed_local_input_permutation_mapping = permute(
            hidden_states,
            self.local_map,
            probs=self.local_probs,
            num_out_tokens=int(tokens_per_expert.sum()),
            fused=True,
        )[:3]
        self.routing_map = None
        return permuted, tokens_per_expert, self.local_probs

    return fused_or_original


def reached_past_the_wrapper(*args, **kwargs):
    """Stands for a TransformerEngine kernel in ``moe_utils``, whose only callers are wrapped."""
    from ascend_patch.engine.errors import AscendPatchError

    raise AscendPatchError(
        "A fused permutation kernel was called past megatron.core.transformer.moe.moe_utils.permute, unpermute and "
        "sort_chunks_by_idxs, which ascend_patch replaces. Leave out --moe-permute-fusion, and report the caller."
    )


_MODULE = "megatron.core.transformer.moe.moe_utils"
_FUNCTIONS = ("permute", "unpermute", "sort_chunks_by_idxs")
_KERNELS = (
    "fused_permute",
    "fused_permute_with_probs",
    "fused_sort_chunks_by_index",
    "fused_sort_chunks_by_index_with_probs",
    "fused_unpermute",
)
_patch = partial(
    Patch,
    id="moe.permute",
    upstream=">=0.16.1,<0.20",
    reason="--moe-permute-fusion is TransformerEngine's alone upstream: a ValueError without it.",
    remove_when="upstream has a permutation without TransformerEngine that is not sorting tokens x experts.",
    when=without_transformer_engine,
)

PATCHES = (
    Patch(
        id="moe.allgather_probs",
        target="megatron.core.transformer.moe.token_dispatcher:MoEAllGatherTokenDispatcher.dispatch_postprocess",
        impl="ascend_patch.features.dispatcher:allgather_dispatch_postprocess",
        mode="wrap",
        upstream=">=0.16.1,<0.20",
        reason="With --moe-permute-fusion the allgather dispatcher still selects probabilities by mask: a second wait.",
        remove_when="upstream gives the probabilities to permute, as its alltoall dispatcher does.",
        when=without_transformer_engine,
    ),
    *(
        _patch(target=f"{_MODULE}:{name}", impl=f"ascend_patch.features.dispatcher:{name}", mode="wrap")
        for name in _FUNCTIONS
    ),
    *(
        _patch(
            target=f"{_MODULE}:{name}", impl="ascend_patch.features.dispatcher:reached_past_the_wrapper", mode="replace"
        )
        for name in _KERNELS
    ),
)
