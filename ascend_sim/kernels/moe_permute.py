"""Token permutation of a mixture of experts by expert indices: npu_moe_token_permute, npu_moe_token_unpermute."""

import torch

from ascend_sim.errors import NotModelled, require
from ascend_sim.kernels.checks import (
    INDEX,
    require_dim,
    require_dtype,
    require_indices,
    require_same_dtype,
    require_shape,
    wide,
)
from ascend_sim.kernels.registry import kernel

_CANN = "https://www.hiascend.com/document/detail/zh/CANNCommunityEdition/850alpha002/API/aolapi/context"
_LARGEST_INDEX = 16_777_215  # indices are sorted as float32
_LARGEST_TOPK = 512


@kernel(
    "npu_moe_token_permute",
    source=f"{_CANN}/aclnnMoeTokenPermute.md; number of tokens returned: Ascend/op-plugin 26.0.0 "
    "op_plugin/utils/KernelNpuOutputSize.cpp",
    assumes=("Tokens of one expert keep their order (the sort is stable).",),
)
def npu_moe_token_permute(
    tokens: torch.Tensor, indices: torch.Tensor, num_out_tokens: int | None, padded_mode: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Repeat every token for each of its experts and sort the copies by expert.

    Args:
        tokens: ``[tokens, hidden]``, float16, bfloat16 or float32.
        indices: Experts of each token, ``[tokens, topk]`` or ``[tokens]``, int32 or int64, topk at most 512.
        num_out_tokens: Length of the first result; None or 0: all, negative: so many fewer.
        padded_mode: Only False.

    Returns:
        The sorted copies, and for each entry of `indices` its row among them (int32, ``[tokens * topk]``).
    """
    _check_tokens(tokens, indices, padded_mode)
    require_indices("indices", indices, _LARGEST_INDEX)
    flat = indices.reshape(-1)
    count = _kept(num_out_tokens or 0, flat.numel())
    order = torch.argsort(flat, stable=True)
    rows = torch.empty_like(order, dtype=torch.int32)
    rows[order] = torch.arange(order.numel(), dtype=torch.int32)
    return tokens.index_select(0, order[:count] // _topk(indices)), rows


@kernel(
    "npu_moe_token_permute_grad",
    source="aclnnMoeTokenPermuteGrad in gitcode.com/cann/ops-transformer, moe/moe_token_permute_grad",
    assumes=("Copies of a token are summed in float32 and rounded once.",),
)
def npu_moe_token_permute_grad(
    tokens: torch.Tensor,
    grad_permuted_tokens: torch.Tensor,
    indices: torch.Tensor,
    sorted_indices: torch.Tensor,
    padded_mode: bool,
) -> torch.Tensor:
    """Gradient of the tokens: the sum over their copies; copies that were cut off count as zero."""
    _check_tokens(tokens, indices, padded_mode)
    require_same_dtype(tokens=tokens, grad_permuted_tokens=grad_permuted_tokens)
    require_shape("sorted_indices", sorted_indices, (indices.numel(),))
    gathered = _gather(wide(grad_permuted_tokens), sorted_indices)
    return gathered.unflatten(0, (tokens.shape[0], _topk(indices))).sum(1).to(tokens.dtype)


@kernel(
    "npu_moe_token_unpermute",
    source=f"{_CANN}/aclnnMoeTokenUnpermute.md; data types, rounding and rows not read: moe_token_unpermute_def.cpp "
    "and moe_token_unpermute.h in gitcode.com/cann/ops-transformer, moe/moe_token_unpermute",
    ignores=("restore_shape",),
)
def npu_moe_token_unpermute(
    permuted_tokens: torch.Tensor, sorted_indices: torch.Tensor, probs: torch.Tensor | None, padded_mode: bool
) -> torch.Tensor:
    """Put permuted rows back and sum the copies of a token in float32, weighted by `probs`.

    Rows with probability zero, and rows that npu_moe_token_permute cut off (num_out_tokens), are not read: whatever
    they hold counts as zero.

    Args:
        permuted_tokens: ``[rows, hidden]``, float16, bfloat16 or float32.
        sorted_indices: Second result of npu_moe_token_permute, int32, ``[tokens * topk]``.
        probs: ``[tokens, topk]`` of any of the data types above; None means topk 1 and weights of one.
        padded_mode: Only False.

    Returns:
        ``[tokens, hidden]``, data type of `permuted_tokens`.
    """
    topk = _check_permuted(permuted_tokens, sorted_indices, probs, padded_mode)
    gathered = _gather(wide(permuted_tokens), sorted_indices).unflatten(0, (-1, topk))
    if probs is not None:
        gathered = _weighted(gathered, wide(probs).unsqueeze(-1))
    return gathered.sum(1).to(permuted_tokens.dtype)


@kernel(
    "npu_moe_token_unpermute_grad",
    source="the derivative of npu_moe_token_unpermute; data types: moe_token_unpermute_grad_def.cpp in "
    "gitcode.com/cann/ops-transformer, moe/moe_token_unpermute_grad/op_host",
    assumes=("Sums over the hidden dimension are computed in float32 and rounded once.",),
    ignores=("restore_shape",),
)
def npu_moe_token_unpermute_grad(
    permuted_tokens: torch.Tensor,
    grad_unpermuted_tokens: torch.Tensor,
    sorted_indices: torch.Tensor,
    probs: torch.Tensor | None,
    padded_mode: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Gradients of the permuted rows and of `probs` (None without them), each in the data type of its tensor."""
    topk = _check_permuted(permuted_tokens, sorted_indices, probs, padded_mode)
    require_same_dtype(permuted_tokens=permuted_tokens, grad_unpermuted_tokens=grad_unpermuted_tokens)
    tokens = sorted_indices.numel() // topk
    require_shape("grad_unpermuted_tokens", grad_unpermuted_tokens, (tokens, permuted_tokens.shape[1]))
    copies = wide(grad_unpermuted_tokens).unsqueeze(1).expand(-1, topk, -1)
    weighted = copies if probs is None else copies * wide(probs).unsqueeze(-1)
    kept = sorted_indices < permuted_tokens.shape[0]
    grad_permuted = torch.zeros(permuted_tokens.shape, dtype=weighted.dtype)
    grad_permuted[sorted_indices[kept].long()] = weighted.flatten(0, 1)[kept]
    grad_permuted = grad_permuted.to(permuted_tokens.dtype)
    if probs is None:
        return grad_permuted, None
    rows = _gather(wide(permuted_tokens), sorted_indices).unflatten(0, (-1, topk))
    return grad_permuted, (rows * copies).sum(-1).to(probs.dtype)


def _check_tokens(tokens: torch.Tensor, indices: torch.Tensor, padded_mode: bool) -> None:
    _refuse_padded(padded_mode)
    require_dtype("tokens", tokens)
    require_dim("tokens", tokens, 2)
    require_dtype("indices", indices, INDEX)
    require_dim("indices", indices, 1, 2)
    require(
        indices.shape[0] == tokens.shape[0],
        f"indices has {indices.shape[0]} rows for {tokens.shape[0]} tokens, needed: as many",
    )
    require(_topk(indices) <= _LARGEST_TOPK, f"topk is {_topk(indices)}, allowed: at most {_LARGEST_TOPK}")
    require(
        indices.numel() < _LARGEST_INDEX,
        f"indices has {indices.numel()} elements, allowed: less than {_LARGEST_INDEX}",
    )


def _check_permuted(
    permuted_tokens: torch.Tensor, sorted_indices: torch.Tensor, probs: torch.Tensor | None, padded_mode: bool
) -> int:
    _refuse_padded(padded_mode)
    require_dtype("permuted_tokens", permuted_tokens)
    require_dim("permuted_tokens", permuted_tokens, 2)
    require_dtype("sorted_indices", sorted_indices, (torch.int32,))
    require_dim("sorted_indices", sorted_indices, 1)
    require_indices("sorted_indices", sorted_indices, sorted_indices.numel())
    require(
        permuted_tokens.shape[0] <= sorted_indices.numel(),
        f"permuted_tokens has {permuted_tokens.shape[0]} rows for {sorted_indices.numel()} sorted_indices, "
        "allowed: at most as many",
    )
    if probs is None:
        return 1
    require_dtype("probs", probs)
    require_dim("probs", probs, 2)
    topk = probs.shape[1]
    require(0 < topk <= _LARGEST_TOPK, f"topk is {topk}, allowed: 1 to {_LARGEST_TOPK}")
    require(
        probs.numel() == sorted_indices.numel(),
        f"probs has shape {tuple(probs.shape)} for {sorted_indices.numel()} sorted_indices, needed: as many elements",
    )
    return topk


def _refuse_padded(padded_mode: bool) -> None:
    if padded_mode:
        raise NotModelled("padded_mode=True: the operator itself does not support it yet, only False is allowed")


def _topk(indices: torch.Tensor) -> int:
    return 1 if indices.dim() == 1 else indices.shape[1]


def _kept(num_out_tokens: int, total: int) -> int:
    kept = min(num_out_tokens, total) if num_out_tokens > 0 else num_out_tokens + total
    require(kept >= 0, f"num_out_tokens is {num_out_tokens}, allowed: at least {-total}")
    return kept


def _gather(rows: torch.Tensor, sorted_indices: torch.Tensor) -> torch.Tensor:
    """``rows[sorted_indices]``, zero where the index lies beyond the rows (copies that were cut off)."""
    if rows.shape[0] == sorted_indices.numel():
        return rows.index_select(0, sorted_indices)
    padded = torch.cat((rows, rows.new_zeros(1, rows.shape[1])))
    return padded.index_select(0, sorted_indices.clamp(max=rows.shape[0]))


def _weighted(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``rows * weight``, zero where the weight is, even for rows that are not finite."""
    return torch.where(weight != 0, rows * weight, 0.0)
