"""Fused attention: npu_fusion_attention and its gradient, in every layout, packed sequences included."""

from collections.abc import Iterable
from typing import Any

import torch

from ascend_sim.errors import ConstraintError, require
from ascend_sim.kernels import random
from ascend_sim.kernels.attention_batch import AttentionBatch
from ascend_sim.kernels.attention_mask import COMPRESSED_MODES, MaskArguments
from ascend_sim.kernels.checks import require_choice, require_dtype, require_same_dtype, require_shape
from ascend_sim.kernels.registry import kernel

_SOURCE = (
    "https://gitcode.com/Ascend/op-plugin/blob/26.0.0/docs/zh/custom_APIs/torch_npu/torch_npu-npu_fusion_attention.md; "
    "op_plugin/ops/opapi/FlashAttentionKernelNpuOpApi.cpp (Ascend/op-plugin 26.0.0); aclnnFlashAttentionScore.md and "
    "aclnnFlashAttentionVarLenScore.md in gitcode.com/cann/ops-transformer, attention/flash_attention_score/docs"
)


def tensors_read(arguments: dict[str, Any]) -> Iterable[Any]:
    """Everything; of a mask that stands for any length only the corner of the size of the longest sequence."""
    if arguments["atten_mask"] is None or arguments["sparse_mode"] not in COMPRESSED_MODES:
        return arguments.values()
    queries, keys = _batch(arguments).longest()
    corner = arguments["atten_mask"][:queries, :keys]
    return (arguments | {"atten_mask": corner}).values()


def shapes_of_forward(arguments: dict[str, Any]) -> tuple[Any, ...]:
    """Zeros, and ones for the sums."""
    batch = _batch(arguments)
    output, rows = batch.query.new_zeros(batch.output_shape()), torch.zeros(batch.rows_shape())
    return output, rows, rows + 1, output.new_empty(0), arguments["seed"], arguments["offset"], batch.scores()


def shapes_of_backward(arguments: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """Zeros."""
    query, key, value = (torch.zeros_like(arguments[name]) for name in ("query", "key", "value"))
    return query, key, value, query.new_empty(0), query.new_empty(0)


@kernel(
    "npu_fusion_attention",
    source=_SOURCE,
    assumes=(
        "The dropout mask depends on seed and offset alone; its bits are not those of the device.",
        "A query that may see no key (sparse_mode 3 with fewer keys than queries, or inner_precise 2) gives zero.",
        "Scores and sums are kept in float32; only the results are rounded.",
        "Calls that the device accepts but whose sparse_mode, pre_tockens or next_tockens it ignores for want of an "
        "atten_mask are refused.",
        "Packed sequences must cover all tokens; the form with zeros at the end of actual_seq_qlen is not modelled.",
        "Of packed sequences, softmax maxima and sums of softmax_layout '' stand in the order [heads, tokens].",
        "pse, prefix, padding_mask, sink and an external dropout_mask are not modelled.",
    ),
    ignores=("gen_mask_parallel", "sync"),
    reads=tensors_read,
    shapes=shapes_of_forward,
)
def npu_fusion_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    head_num: int,
    input_layout: str,
    atten_mask: torch.Tensor | None,
    scale: float,
    keep_prob: float,
    pre_tockens: int,
    next_tockens: int,
    inner_precise: int,
    actual_seq_qlen: list[int] | None,
    actual_seq_kvlen: list[int] | None,
    sparse_mode: int,
    softmax_layout: str,
    seed: int,
    offset: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, int, int]:
    """``dropout(softmax(mask(scale * query @ key.T))) @ value``.

    Args:
        query: Heads and length as `input_layout` says; float16, bfloat16 or float32, one type for all three.
        key: As `query`, with a divisor of its heads (grouped-query attention).
        value: As `key`; the head size may be smaller.
        head_num: Heads of the query, at most 256.
        input_layout: BSH, SBH, BSND, BNSD, or TND for packed sequences.
        atten_mask: True hides. sparse_mode 0, 1: full size (``[S, S]``, or with batches and heads in front); 2 to 4:
            the 2048 x 2048 upper triangle without its diagonal, whatever the length.
        scale: Multiplies the scores.
        keep_prob: In (0, 1]; 1 is no dropout.
        pre_tockens: Width of the band to the left (modes 0, 4).
        next_tockens: Width of the band to the right (modes 0, 4).
        inner_precise: 2 allows queries that see nothing.
        actual_seq_qlen: For TND, running totals of the lengths of queries.
        actual_seq_kvlen: For TND, running totals of the lengths of keys.
        sparse_mode: 0 and 1 `atten_mask`; 2 causal from the upper left, 3 from the lower right, 4 band.
        softmax_layout: ``""``, or ``TND`` with that layout.
        seed: With dropout; 0 takes one from the device's generator.
        offset: Belongs to `seed`.

    Returns:
        Output, softmax maxima and sums (float32, ``[B, N, S, 8]`` or ``[T, N, 8]``), an empty tensor, and seed, offset
        and size of the dropout mask.
    """
    batch = AttentionBatch.of(query, key, value, head_num, input_layout, actual_seq_qlen, actual_seq_kvlen)
    _check_softmax_layout(softmax_layout, input_layout)
    require(0 < keep_prob <= 1, f"keep_prob is {keep_prob}, allowed: above 0 up to 1")
    masks = MaskArguments(atten_mask, sparse_mode, pre_tockens, next_tockens, inner_precise)
    if keep_prob < 1 and seed == 0:
        seed, offset = random.reserve()
    parts = [part.forward() for part in batch.parts(masks, scale, keep_prob, seed, offset)]
    output = batch.join([part[0] for part in parts]).to(query.dtype)
    maximum = batch.join_rows([part[1] for part in parts], softmax_layout)
    total = batch.join_rows([part[2] for part in parts], softmax_layout)
    return output, maximum, total, query.new_empty(0), seed, offset, batch.scores()


@kernel(
    "npu_fusion_attention_grad",
    source=_SOURCE,
    assumes=("The gradient is formed from the output, maxima and sums that are handed in, as the device does.",),
    ignores=("gen_mask_parallel", "sync", "softmax_in"),
    reads=tensors_read,
    shapes=shapes_of_backward,
)
def npu_fusion_attention_grad(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dy: torch.Tensor,
    head_num: int,
    input_layout: str,
    atten_mask: torch.Tensor | None,
    softmax_max: torch.Tensor | None,
    softmax_sum: torch.Tensor | None,
    attention_in: torch.Tensor | None,
    scale_value: float,
    keep_prob: float,
    pre_tockens: int,
    next_tockens: int,
    inner_precise: int,
    seed: int,
    offset: int,
    numels: int,
    actual_seq_qlen: list[int] | None,
    actual_seq_kvlen: list[int] | None,
    sparse_mode: int,
    softmax_layout: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key and value, and two empty tensors (those of pse and sink).

    `dy` is the gradient of the output `attention_in`; `softmax_max`, `softmax_sum`, `seed`, `offset` and `numels` are
    results of the forward operator. The other arguments are those of :func:`npu_fusion_attention`.
    """
    batch = AttentionBatch.of(query, key, value, head_num, input_layout, actual_seq_qlen, actual_seq_kvlen)
    _check_softmax_layout(softmax_layout, input_layout)
    require(0 < keep_prob <= 1, f"keep_prob is {keep_prob}, allowed: above 0 up to 1")
    if attention_in is None or softmax_max is None or softmax_sum is None:
        raise ConstraintError("attention_in, softmax_max and softmax_sum of the forward operator are needed")
    require_same_dtype(query=query, dy=dy, attention_in=attention_in)
    for name, tensor in (("dy", dy), ("attention_in", attention_in)):
        require_shape(name, tensor, batch.output_shape())
    for name, tensor in (("softmax_max", softmax_max), ("softmax_sum", softmax_sum)):
        require_dtype(name, tensor, (torch.float32,))
        require_shape(name, tensor, batch.rows_shape())
    require(
        keep_prob == 1 or numels == batch.scores(),
        f"numels is {numels}, needed with dropout: the {batch.scores()} of the forward operator",
    )
    masks = MaskArguments(atten_mask, sparse_mode, pre_tockens, next_tockens, inner_precise)
    handed = zip(
        batch.parts(masks, scale_value, keep_prob, seed, offset),
        batch.split_output(dy),
        batch.split_output(attention_in),
        batch.split_rows(softmax_max, softmax_layout),
        batch.split_rows(softmax_sum, softmax_layout),
        strict=True,
    )
    grads = [part.backward(grad, output, maximum, total) for part, grad, output, maximum, total in handed]
    grad_query, grad_key, grad_value = (batch.join([g[i] for g in grads]).to(query.dtype) for i in range(3))
    empty = query.new_empty(0)
    return grad_query, grad_key, grad_value, empty, empty.clone()


def _batch(arguments: dict[str, Any]) -> AttentionBatch:
    names = ("query", "key", "value", "head_num", "input_layout", "actual_seq_qlen", "actual_seq_kvlen")
    return AttentionBatch.of(*(arguments[name] for name in names))


def _check_softmax_layout(softmax_layout: str, input_layout: str) -> None:
    require_choice("softmax_layout", softmax_layout, ("", "TND") if input_layout == "TND" else ("",))
