"""The way back of the permutation by a routing map: copies of a token are weighted and summed."""

import torch

from ascend_sim.errors import ConstraintError, require
from ascend_sim.kernels.checks import (
    require_dim,
    require_dtype,
    require_indices,
    require_same_dtype,
    require_shape,
    wide,
)
from ascend_sim.kernels.registry import kernel
from ascend_sim.kernels.routing_map import CANN, HOST, check_routing_map, check_uniform, scatter_probs


@kernel(
    "_npu_moe_token_unpermute_with_routing_map",
    source=f"{CANN}/aclnnMoeTokenUnpermuteWithRoutingMap.md; data types: moe_token_unpermute_with_routing_map_def.cpp "
    f"in {HOST}/moe_token_unpermute_with_routing_map/op_host; Ascend/op-plugin 26.0.0 "
    "test/test_custom_ops/test_npu_moe_token_unpermute_with_routing_map.py",
    assumes=(
        "Without drop_and_pad the second and third result are undefined on the device; here they hold -1.",
        "Products with the probabilities and their sum are computed in float32 and rounded once.",
    ),
)
def npu_moe_token_unpermute_with_routing_map(
    permuted_tokens: torch.Tensor,
    sorted_indices: torch.Tensor,
    restore_shape: list[int],
    probs: torch.Tensor | None,
    routing_map: torch.Tensor | None,
    drop_and_pad: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Sum the copies of a token, weighted by `probs`: the way back of npu_moe_token_permute_with_routing_map.

    Args:
        permuted_tokens: ``[rows, hidden]``, float16, bfloat16 or float32.
        sorted_indices: Third result of npu_moe_token_permute_with_routing_map.
        restore_shape: ``[tokens, hidden]``.
        probs: ``[tokens, experts]``, data type of `permuted_tokens`.
        routing_map: ``[tokens, experts]``, bool or int8.
        drop_and_pad: As in the permutation.

    Returns:
        Tokens; with drop_and_pad the rows sorted by token, and the token of each; probabilities of the rows.
    """
    topk = _check_unpermute(permuted_tokens, sorted_indices, restore_shape, probs, routing_map, drop_and_pad)
    tokens, hidden = restore_shape
    values, indices = wide(permuted_tokens), sorted_indices.long()
    if drop_and_pad:
        token_of_row, row = sorted_indices.sort(dim=-1, stable=True)
        permuted_probs = None if probs is None else _capacity_probs(probs, indices)
        if permuted_probs is not None:
            values = values * wide(permuted_probs).unsqueeze(-1)
        summed = values.new_zeros(tokens, hidden).index_add_(0, indices, values)
        return summed.to(permuted_tokens.dtype), row.to(torch.int32), token_of_row, permuted_probs
    gathered = values.index_select(0, indices).view(tokens, topk, hidden)
    permuted_probs = None
    if probs is not None and routing_map is not None:
        chosen = routing_map.bool()
        gathered = gathered * wide(probs).masked_select(chosen).view(tokens, topk, 1)
        permuted_probs = probs.T.masked_select(chosen.T)
    undefined = torch.full_like(sorted_indices, -1)
    return gathered.sum(1).to(permuted_tokens.dtype), undefined, undefined.clone(), permuted_probs


@kernel(
    "npu_moe_token_unpermute_with_routing_map",
    source="MoeTokenUnpermuteWithRoutingMapKernelOpApi.cpp in Ascend/op-plugin 26.0.0 op_plugin/ops/opapi",
)
def npu_moe_token_unpermute_with_routing_map_only(
    permuted_tokens: torch.Tensor,
    sorted_indices: torch.Tensor,
    restore_shape: list[int],
    probs: torch.Tensor | None,
    routing_map: torch.Tensor | None,
    drop_and_pad: bool,
) -> torch.Tensor:
    """The first result of _npu_moe_token_unpermute_with_routing_map; reached where autograd is left out."""
    return npu_moe_token_unpermute_with_routing_map(
        permuted_tokens, sorted_indices, restore_shape, probs, routing_map, drop_and_pad
    )[0]


@kernel(
    "npu_moe_token_unpermute_with_routing_map_grad",
    source="the derivative of _npu_moe_token_unpermute_with_routing_map, called as Ascend/op-plugin 26.0.0 "
    "op_plugin/config/derivatives.yaml calls it; data types: MoeTokenUnpermuteWithRoutingMapGradKernelNpuOpApi.cpp",
)
def npu_moe_token_unpermute_with_routing_map_grad(
    unpermuted_tokens_grad: torch.Tensor,
    out_index: torch.Tensor,
    permuted_token_id: torch.Tensor,
    routing_map: torch.Tensor | None,
    permuted_tokens: torch.Tensor | None,
    probs: torch.Tensor | None,
    drop_and_pad: bool,
    restore_shape: list[int],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Gradients of the permuted rows and of `probs`, both in the data type of `unpermuted_tokens_grad`.

    Without drop_and_pad `out_index` and `permuted_token_id` are both the permutation's indices.
    """
    require_dtype("unpermuted_tokens_grad", unpermuted_tokens_grad)
    require_shape("unpermuted_tokens_grad", unpermuted_tokens_grad, tuple(restore_shape))
    require_same_dtype(unpermuted_tokens_grad=unpermuted_tokens_grad, probs=probs, permuted_tokens=permuted_tokens)
    require(probs is None or permuted_tokens is not None, "permuted_tokens is None, with probs it is needed")
    gradient = wide(unpermuted_tokens_grad)
    tokens, rows = restore_shape[0], out_index.numel()
    require_indices("out_index", out_index, rows)
    if drop_and_pad:
        token_of_row = torch.empty(rows, dtype=torch.long)
        token_of_row[out_index.long()] = permuted_token_id.long()
        row_weight = None if probs is None else _capacity_probs(probs, token_of_row)
    else:
        topk = rows // tokens if tokens else 0
        token_of_row = torch.empty(rows, dtype=torch.long)
        token_of_row[out_index.long()] = torch.arange(tokens).repeat_interleave(topk)
        row_weight = None
        if probs is not None:
            if routing_map is None:
                raise ConstraintError("routing_map is None, with probs it is needed")
            row_weight = probs.T.masked_select(routing_map.bool().T)
    copies = gradient.index_select(0, token_of_row)
    weighted = copies if row_weight is None else copies * wide(row_weight).unsqueeze(-1)
    grad_permuted = weighted.to(unpermuted_tokens_grad.dtype)
    if probs is None or permuted_tokens is None:
        return grad_permuted, None
    row_grad = (copies * wide(permuted_tokens)).sum(-1).to(unpermuted_tokens_grad.dtype)
    index = token_of_row if drop_and_pad else out_index.long()
    return grad_permuted, scatter_probs(row_grad, index, _map_for(routing_map, probs), drop_and_pad)


def _check_unpermute(
    permuted_tokens: torch.Tensor,
    sorted_indices: torch.Tensor,
    restore_shape: list[int],
    probs: torch.Tensor | None,
    routing_map: torch.Tensor | None,
    drop_and_pad: bool,
) -> int:
    """All constraints of the way back; returns topk (0 with drop_and_pad)."""
    require_dtype("permuted_tokens", permuted_tokens)
    require_dim("permuted_tokens", permuted_tokens, 2)
    require_dtype("sorted_indices", sorted_indices, (torch.int32,))
    require_shape("sorted_indices", sorted_indices, (permuted_tokens.shape[0],))
    require(
        len(restore_shape) == 2 and restore_shape[1] == permuted_tokens.shape[1],
        f"restore_shape is {restore_shape}, needed: [tokens, {permuted_tokens.shape[1]}]",
    )
    require_same_dtype(permuted_tokens=permuted_tokens, probs=probs)
    tokens = restore_shape[0]
    if probs is not None:
        require_dim("probs", probs, 2)
        require(probs.shape[0] == tokens, f"probs has {probs.shape[0]} rows, needed: {tokens} tokens")
    if drop_and_pad:
        require_indices("sorted_indices", sorted_indices, tokens)
        return 0
    if routing_map is None:
        raise ConstraintError("routing_map is None, without drop_and_pad it is needed")
    check_routing_map(routing_map, tokens)
    if probs is not None:
        require_shape("probs", probs, tuple(routing_map.shape))
    rows = permuted_tokens.shape[0]
    require_indices("sorted_indices", sorted_indices, rows)
    topk = rows // tokens if tokens else 0
    require(topk * tokens == rows, f"permuted_tokens has {rows} rows, needed: a multiple of {tokens} tokens")
    require(
        rows > 0 or tokens == 0, f"permuted_tokens is empty for {tokens} tokens: the device leaves the result unset"
    )
    check_uniform(routing_map, topk)
    return topk


def _capacity_probs(probs: torch.Tensor, token_of_row: torch.Tensor) -> torch.Tensor:
    """Probability of each row when every expert has equally many rows."""
    experts = probs.shape[1]
    return probs.T.gather(1, token_of_row.view(experts, -1)).reshape(-1)


def _map_for(routing_map: torch.Tensor | None, probs: torch.Tensor) -> torch.Tensor:
    return probs if routing_map is None else routing_map
