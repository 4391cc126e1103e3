"""Token permutation in single Ascend operators, probabilities included, and their gradients in single ones.

``npu_moe_token_permute_with_routing_map`` takes Megatron's map as it is, if every token has equally many experts
(:mod:`ascend_patch.ops.routing_map` knows). Its indices are not those of the other variants: they name, for each
copy of each token, its row, as int32. torch_npu's own gradients want a gradient of every result, and keep the rows
that are summed though without probabilities nothing needs them; ours do neither.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch_npu
from torch import Tensor
from torch.autograd.function import once_differentiable

from ascend_patch.ops.function import apply
from ascend_patch.ops.permute.torch import sort_chunks
from ascend_patch.ops.registry import Unsupported
from ascend_patch.ops.routing_map import experts_per_token

__all__ = ["permute", "sort_chunks", "unpermute"]

_OPERATOR = "npu_moe_token_permute_with_routing_map"
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_MOST_COPIES = 511
_MOST_TOKENS = 16_777_214
"""The operator sorts indices as float32."""


def permute(
    tokens: Tensor, routing_map: Tensor, probs: Tensor | None, num_out_tokens: int
) -> tuple[Tensor, Tensor | None, Tensor]:
    """See :func:`ascend_patch.ops.permute.permute`."""
    _check(tokens, routing_map, probs, num_out_tokens)
    return apply(_Permute, tokens, routing_map, probs, num_out_tokens)


def unpermute(
    permuted: Tensor,
    sorted_indices: Tensor,
    restore_shape: Sequence[int],
    probs: Tensor | None = None,
    routing_map: Tensor | None = None,
) -> Tensor:
    """See :func:`ascend_patch.ops.permute.unpermute`."""
    if sorted_indices.dtype != torch.int32:
        raise Unsupported("tokens that another variant permuted")
    if routing_map is None:
        raise ValueError("unpermute: the Ascend operator needs the routing_map that was given to permute.")
    if probs is None:
        return apply(_Unpermute, permuted, sorted_indices, list(restore_shape), routing_map)
    return torch_npu.npu_moe_token_unpermute_with_routing_map(
        permuted, sorted_indices, list(restore_shape), probs=probs.to(permuted.dtype), routing_map=routing_map
    )


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, routing_map: Tensor, probs: Tensor | None, num_out_tokens: int
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        together = probs if probs is not None and probs.dtype == tokens.dtype else None
        permuted, permuted_probs, rows = torch_npu.npu_moe_token_permute_with_routing_map(
            tokens, routing_map, probs=together, num_out_tokens=num_out_tokens
        )
        if probs is not None and together is None:
            # The operator wants probabilities in the data type of the tokens: in this call they are both.
            _, permuted_probs, _ = torch_npu.npu_moe_token_permute_with_routing_map(
                probs, routing_map, probs=probs, num_out_tokens=num_out_tokens
            )
        ctx.save_for_backward(routing_map, rows)
        ctx.mark_non_differentiable(rows)
        ctx.set_materialize_grads(False)
        return permuted, permuted_probs if probs is not None else None, rows

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_permuted: Tensor | None, grad_probs: Tensor | None, _: None
    ) -> tuple[Tensor | None, None, Tensor | None, None]:
        routing_map, rows = ctx.saved_tensors
        grad_tokens = grad_map = None
        if grad_permuted is not None and (grad_probs is None or grad_probs.dtype == grad_permuted.dtype):
            grad_tokens, grad_map = _permute_gradients(grad_permuted, grad_probs, rows, routing_map)
            return grad_tokens, None, grad_map, None
        if grad_permuted is not None:
            grad_tokens = _permute_gradients(grad_permuted, None, rows, routing_map)[0]
        if grad_probs is not None:
            grad_map = _permute_gradients(grad_probs.unsqueeze(-1), grad_probs, rows, routing_map)[1]
        return grad_tokens, None, grad_map, None


def _permute_gradients(
    grad_permuted: Tensor, grad_probs: Tensor | None, rows: Tensor, routing_map: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Of tokens ``[T, H]`` and probabilities ``[T, E]``; the operator does not do the latter alone."""
    num_tokens, num_experts = routing_map.shape
    grad_tokens, grad_map = torch_npu.npu_moe_token_permute_with_routing_map_grad(
        grad_permuted, grad_probs, rows, routing_map, num_experts, num_tokens, False
    )
    return grad_tokens, grad_map if grad_probs is not None else None


class _Unpermute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, permuted: Tensor, rows: Tensor, restore_shape: list[int], routing_map: Tensor) -> Tensor:
        ctx.save_for_backward(rows, routing_map)
        ctx.restore_shape = restore_shape
        return torch_npu.npu_moe_token_unpermute_with_routing_map(
            permuted, rows, restore_shape, routing_map=routing_map
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_tokens: Tensor) -> tuple[Tensor, None, None, None]:
        rows, routing_map = ctx.saved_tensors
        grad_permuted, _ = torch_npu.npu_moe_token_unpermute_with_routing_map_grad(
            grad_tokens, rows, rows, routing_map, None, None, False, ctx.restore_shape
        )
        return grad_permuted, None, None, None


def _check(tokens: Tensor, routing_map: Tensor, probs: Tensor | None, num_out_tokens: int) -> None:
    copies = experts_per_token(routing_map)
    if copies is None:
        raise Unsupported(f"a map not known to give all tokens equally many experts; {_OPERATOR} takes no other")
    if num_out_tokens != copies * tokens.shape[0]:
        raise Unsupported(f"more or fewer rows than copies; {_OPERATOR} makes {copies} for every token")
    for tensor in (tokens, tokens if probs is None else probs):
        if tensor.dtype not in _DTYPES:
            raise Unsupported(f"{tensor.dtype}; {_OPERATOR} takes bfloat16, float16 and float32")
    if not (1 <= copies <= _MOST_COPIES and 1 <= tokens.shape[0] <= _MOST_TOKENS):
        raise Unsupported(
            f"{copies} copies of {tokens.shape[0]} tokens; {_OPERATOR} takes 1 to {_MOST_COPIES} of 1 to {_MOST_TOKENS}"
        )
