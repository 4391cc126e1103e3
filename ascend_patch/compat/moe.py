"""Shapes of upstream's MoE interfaces that differ between releases."""

from functools import cache

from packaging.version import Version

from ascend_patch.compat.upstream import locate


@cache
def _permute_returns_five() -> bool:
    return Version(locate().version) >= Version("0.17.0")


def permute_result(permuted, permuted_probs, sorted_indices, tokens_per_expert):
    """What ``moe_utils.permute`` returns: from 0.17 on with pad offsets (none here) and tokens per expert."""
    if _permute_returns_five():
        return permuted, permuted_probs, sorted_indices, None, tokens_per_expert
    return permuted, permuted_probs, sorted_indices
