"""Token permutation of a mixture of experts by a boolean routing map, as Megatron-LM keeps it."""

import torch

from ascend_sim.errors import require
from ascend_sim.kernels.checks import require_dim, require_dtype, require_same_dtype, require_shape, wide
from ascend_sim.kernels.registry import kernel
from ascend_sim.kernels.routing_map import CANN, HOST, check_routing_map, check_uniform, scatter_probs


@kernel(
    "npu_moe_token_permute_with_routing_map",
    source=f"torch_npu 2.9.1 _op_plugin_docs.py; {CANN}/aclnnMoeTokenPermuteWithRoutingMap.md; checks: "
    f"aclnn_moe_token_permute_with_routing_map.cpp in {HOST}/moe_token_permute_with_routing_map/op_host/op_api; "
    "Ascend/op-plugin 26.0.0 test/test_custom_ops/test_npu_moe_token_permute_with_routing_map.py",
)
def npu_moe_token_permute_with_routing_map(
    tokens: torch.Tensor,
    routing_map: torch.Tensor,
    probs: torch.Tensor | None,
    num_out_tokens: int | None,
    drop_and_pad: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Copy every token to each expert of its row of the map, expert by expert.

    Without `drop_and_pad` every token must have the same number of experts, ``num_out_tokens // tokens``, below 512.

    Args:
        tokens: ``[tokens, hidden]``, float16, bfloat16 or float32.
        routing_map: ``[tokens, experts]``, bool or int8.
        probs: ``[tokens, experts]``, data type of `tokens`.
        num_out_tokens: Rows of the result; None means the number of tokens.
        drop_and_pad: Give every expert ``num_out_tokens // experts`` rows, first its own tokens, then others.

    Returns:
        Copies, their probabilities (None without `probs`), and int32 indices: for each of a token's copies its row
        (``[tokens * topk]``), or with drop_and_pad for each row its token.
    """
    _check_map(tokens, routing_map, probs, num_out_tokens, drop_and_pad)
    chosen = routing_map.bool().T
    if drop_and_pad:
        experts = routing_map.shape[1]
        capacity = _rows(tokens, num_out_tokens) // experts
        picked = chosen.to(torch.int8).sort(dim=-1, descending=True, stable=True).indices[:, :capacity]
        permuted_probs = None if probs is None else probs.T.gather(1, picked).reshape(-1)
        picked = picked.reshape(-1)
        return tokens.index_select(0, picked), permuted_probs, picked.to(torch.int32)
    token_of_row = chosen.nonzero()[:, 1]
    rows = torch.argsort(token_of_row, stable=True)
    permuted_probs = None if probs is None else probs.T.masked_select(chosen)
    return tokens.index_select(0, token_of_row), permuted_probs, rows.to(torch.int32)


@kernel(
    "npu_moe_token_permute_with_routing_map_grad",
    source=f"aclnnMoeTokenPermuteWithRoutingMapGrad in {HOST}/moe_token_permute_with_routing_map_grad; the derivative "
    "of npu_moe_token_permute_with_routing_map",
    assumes=("Copies of a token are summed in float32 and rounded once.",),
)
def npu_moe_token_permute_with_routing_map_grad(
    permuted_token_out_grad: torch.Tensor,
    probs_grad: torch.Tensor | None,
    sorted_indices: torch.Tensor,
    routing_map: torch.Tensor,
    experts_num: int,
    tokens_num: int,
    drop_and_pad: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Gradients of tokens ``[tokens_num, hidden]`` and probabilities ``[tokens_num, experts_num]``."""
    require_dtype("permuted_token_out_grad", permuted_token_out_grad)
    require(
        permuted_token_out_grad.shape[0] > 0 or tokens_num == 0,
        f"permuted_token_out_grad is empty for {tokens_num} tokens: the device leaves the result unset",
    )
    require_shape("routing_map", routing_map, (tokens_num, experts_num))
    require_shape("sorted_indices", sorted_indices, (permuted_token_out_grad.shape[0],))
    gradient, indices = wide(permuted_token_out_grad), sorted_indices.long()
    if drop_and_pad:
        grad_tokens = gradient.new_zeros(tokens_num, gradient.shape[1]).index_add_(0, indices, gradient)
    else:
        grad_tokens = gradient.index_select(0, indices).view(tokens_num, -1, gradient.shape[1]).sum(1)
    grad_tokens = grad_tokens.to(permuted_token_out_grad.dtype)
    if probs_grad is None:
        return grad_tokens, None
    return grad_tokens, scatter_probs(probs_grad, indices, routing_map, drop_and_pad)


def _check_map(
    tokens: torch.Tensor,
    routing_map: torch.Tensor,
    probs: torch.Tensor | None,
    num_out_tokens: int | None,
    drop_and_pad: bool,
) -> None:
    """All constraints of the permutation."""
    require_dtype("tokens", tokens)
    require_dim("tokens", tokens, 2)
    check_routing_map(routing_map, tokens.shape[0])
    require_same_dtype(tokens=tokens, probs=probs)
    if probs is not None:
        require_shape("probs", probs, tuple(routing_map.shape))
    count, experts = routing_map.shape
    rows = _rows(tokens, num_out_tokens)
    require(0 <= rows <= count * experts, f"num_out_tokens is {rows}, allowed: 0 to {count * experts}")
    if drop_and_pad:
        require(rows % experts == 0, f"num_out_tokens is {rows}, needed: a multiple of {experts} experts")
        return
    topk = rows // count if count else 0
    require(topk * count == rows, f"num_out_tokens is {rows}, needed: a multiple of {count} tokens")
    check_uniform(routing_map, topk)


def _rows(tokens: torch.Tensor, num_out_tokens: int | None) -> int:
    return tokens.shape[0] if num_out_tokens is None else num_out_tokens
