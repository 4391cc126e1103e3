"""Token permutation of a mixture of experts by a boolean routing map, as Megatron-LM keeps it."""

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

_CANN = "https://www.hiascend.com/document/detail/zh/CANNCommunityEdition/83RC1/API/aolapi/context"
_HOST = "gitcode.com/cann/ops-transformer, moe"
_LARGEST_INDEX = 16_777_215  # indices are sorted as float32
_TOPK_LIMIT = 512


@kernel(
    "npu_moe_token_permute_with_routing_map",
    source=f"torch_npu 2.9.1 _op_plugin_docs.py; {_CANN}/aclnnMoeTokenPermuteWithRoutingMap.md; checks: "
    f"aclnn_moe_token_permute_with_routing_map.cpp in {_HOST}/moe_token_permute_with_routing_map/op_host/op_api; "
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
    source=f"aclnnMoeTokenPermuteWithRoutingMapGrad in {_HOST}/moe_token_permute_with_routing_map_grad; the derivative "
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
    return grad_tokens, _scatter_probs(probs_grad, indices, routing_map, drop_and_pad)


@kernel(
    "_npu_moe_token_unpermute_with_routing_map",
    source=f"{_CANN}/aclnnMoeTokenUnpermuteWithRoutingMap.md; data types: moe_token_unpermute_with_routing_map_def.cpp "
    f"in {_HOST}/moe_token_unpermute_with_routing_map/op_host; Ascend/op-plugin 26.0.0 "
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
    return grad_permuted, _scatter_probs(row_grad, index, _map_for(routing_map, probs), drop_and_pad)


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
    _check_routing_map(routing_map, tokens.shape[0])
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
    require(topk < _TOPK_LIMIT, f"topk is {topk}, allowed: less than {_TOPK_LIMIT}")
    _check_uniform(routing_map, topk)


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
    _check_routing_map(routing_map, tokens)
    if probs is not None:
        require_shape("probs", probs, tuple(routing_map.shape))
    rows = permuted_tokens.shape[0]
    require_indices("sorted_indices", sorted_indices, rows)
    topk = rows // tokens if tokens else 0
    require(topk * tokens == rows, f"permuted_tokens has {rows} rows, needed: a multiple of {tokens} tokens")
    require(
        rows > 0 or tokens == 0, f"permuted_tokens is empty for {tokens} tokens: the device leaves the result unset"
    )
    require(topk < _TOPK_LIMIT, f"topk is {topk}, allowed: less than {_TOPK_LIMIT}")
    _check_uniform(routing_map, topk)
    return topk


def _check_routing_map(routing_map: torch.Tensor, tokens: int) -> None:
    require_dtype("routing_map", routing_map, (torch.bool, torch.int8))
    require_dim("routing_map", routing_map, 2)
    require(routing_map.shape[0] == tokens, f"routing_map has {routing_map.shape[0]} rows, needed: {tokens} tokens")
    require(
        max(routing_map.shape) < _LARGEST_INDEX,
        f"routing_map has shape {tuple(routing_map.shape)}, allowed: less than {_LARGEST_INDEX} either way",
    )


def _check_uniform(routing_map: torch.Tensor, topk: int) -> None:
    experts = routing_map.bool().sum(1)
    wrong = int((experts != topk).sum())
    require(wrong == 0, f"{wrong} tokens have another number of experts than num_out_tokens // tokens = {topk}")


def _rows(tokens: torch.Tensor, num_out_tokens: int | None) -> int:
    return tokens.shape[0] if num_out_tokens is None else num_out_tokens


def _capacity_probs(probs: torch.Tensor, token_of_row: torch.Tensor) -> torch.Tensor:
    """Probability of each row when every expert has equally many rows."""
    experts = probs.shape[1]
    return probs.T.gather(1, token_of_row.view(experts, -1)).reshape(-1)


def _scatter_probs(
    row_grad: torch.Tensor, indices: torch.Tensor, routing_map: torch.Tensor, drop_and_pad: bool
) -> torch.Tensor:
    """Gradients of rows, back in ``[tokens, experts]``."""
    tokens, experts = routing_map.shape
    by_expert = row_grad.new_zeros(experts, tokens)
    if drop_and_pad:
        by_expert.scatter_add_(1, indices.view(experts, -1), row_grad.view(experts, -1))
    else:
        by_expert.masked_scatter_(routing_map.bool().T, row_grad)
    return by_expert.T.contiguous()


def _map_for(routing_map: torch.Tensor | None, probs: torch.Tensor) -> torch.Tensor:
    return probs if routing_map is None else routing_map
