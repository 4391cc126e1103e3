"""Expert choice of a mixture of experts: npu_moe_gating_top_k_softmax and npu_moe_gating_top_k. No gradients exist."""

import torch

from ascend_sim.errors import require
from ascend_sim.kernels.checks import (
    require_choice,
    require_dim,
    require_dtype,
    require_range,
    require_same_dtype,
    require_shape,
    wide,
)
from ascend_sim.kernels.registry import kernel

_DOCS = "https://gitcode.com/Ascend/op-plugin/blob/26.0.0/docs/zh/custom_APIs/torch_npu"


@kernel(
    "npu_moe_gating_top_k_softmax",
    source=f"{_DOCS}/torch_npu-npu_moe_gating_top_k_softmax.md; ties and finished rows: Ascend/op-plugin 26.0.0 "
    "test/test_custom_ops/test_npu_moe_gating_top_k_softmax.py",
    assumes=("The row indices of a 3-D input count its leading dimensions as one.",),
)
def npu_moe_gating_top_k_softmax(
    x: torch.Tensor, finished: torch.Tensor | None, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Softmax over the experts, then the `k` largest; their sum is not one.

    Of equal probabilities the expert with the lower index comes first.

    Args:
        x: Logits ``[tokens, experts]`` or ``[batch, tokens, experts]``, float16, bfloat16 or float32.
        finished: Rows that take no part, bool; their experts are all ``experts``.
        k: 1 to the number of experts, at most 1,024.

    Returns:
        Probabilities (data type of `x`), experts (int32), and row indices ``column * rows + row`` (int32), each
        ``[…, k]``.
    """
    require_dtype("x", x)
    require_dim("x", x, 2, 3)
    experts = x.shape[-1]
    require_range("k", k, 1, min(experts, 1024))
    probs, chosen = torch.softmax(wide(x), -1).sort(dim=-1, descending=True, stable=True)
    probs, chosen = probs[..., :k].to(x.dtype), chosen[..., :k].to(torch.int32)
    if finished is not None:
        require_dtype("finished", finished, (torch.bool,))
        require_shape("finished", finished, tuple(x.shape[:-1]))
        chosen = chosen.masked_fill(finished.unsqueeze(-1), experts)
    rows = x.shape[:-1].numel()
    row_index = torch.arange(rows * k, dtype=torch.int32).view(k, rows).T.reshape(chosen.shape)
    return probs.contiguous(), chosen.contiguous(), row_index


@kernel(
    "npu_moe_gating_top_k",
    source=f"{_DOCS}/torch_npu-npu_moe_gating_top_k.md (formulas and equivalent code)",
    assumes=(
        "Without groups (group_count 1) all experts are candidates.",
        "With out_flag False the third result is undefined on the device; here it is zero.",
    ),
)
def npu_moe_gating_top_k(
    x: torch.Tensor,
    k: int,
    bias: torch.Tensor | None,
    k_group: int,
    group_count: int,
    group_select_mode: int,
    renorm: int,
    norm_type: int,
    out_flag: bool,
    routed_scaling_factor: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choose `k` experts, out of the best `k_group` of `group_count` groups, by softmax or sigmoid scores.

    Args:
        x: Logits ``[tokens, experts]``, float16, bfloat16 or float32, at most 2,048 experts.
        k: Experts a token.
        bias: Added to the scores for the choice only, ``[experts]``, data type of `x`.
        k_group: Groups to choose from.
        group_count: Number of groups, of more than two experts each unless it is 1.
        group_select_mode: A group's score: 0 its best expert, 1 the sum of its two best.
        renorm: Only 0.
        norm_type: 0 softmax; 1 sigmoid, with the chosen scores divided by their sum plus `eps`.
        out_flag: Return the scores too.
        routed_scaling_factor: Multiplies the result.
        eps: See `norm_type`.

    Returns:
        Weights ``[tokens, k]`` (data type of `x`), experts (int32), and scores ``[tokens, experts]`` (float32).
    """
    require_dtype("x", x)
    require_dim("x", x, 2)
    tokens, experts = x.shape
    require_same_dtype(x=x, bias=bias)
    require_choice("renorm", renorm, (0,))
    require_choice("norm_type", norm_type, (0, 1))
    require_choice("group_select_mode", group_select_mode, (0, 1))
    require(experts <= 2048, f"x has {experts} experts, allowed: at most 2048")
    require(
        group_count > 0 and experts % group_count == 0, f"group_count is {group_count}, needed: a divisor of {experts}"
    )
    size = experts // group_count
    require(group_count == 1 or size > 2, f"groups have {size} experts, needed: more than 2")
    require(
        -(-size // 32) * 32 * group_count <= 2048,
        f"{group_count} groups of {size} experts padded to 32 exceed 2048",
    )
    require_range("k_group", k_group, 1, group_count)
    require_range("k", k, 1, k_group * size)
    scores = torch.softmax(wide(x), -1) if norm_type == 0 else torch.sigmoid(wide(x))
    ranked = scores
    if bias is not None:
        require_shape("bias", bias, (experts,))
        ranked = scores + wide(bias)
    if group_count > 1:
        grouped = ranked.view(tokens, group_count, size)
        best = grouped.amax(-1) if group_select_mode == 0 else grouped.topk(2, dim=-1).values.sum(-1)
        groups = best.sort(dim=-1, descending=True, stable=True).indices[:, :k_group]
        hidden = torch.ones(tokens, group_count, dtype=torch.bool).scatter_(1, groups, False)
        ranked = grouped.masked_fill(hidden.unsqueeze(-1), float("-inf")).view(tokens, experts)
    chosen = ranked.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    weights = scores.gather(1, chosen)
    if norm_type == 1:
        weights = weights / (weights.sum(-1, keepdim=True) + eps)
    weights = (weights * routed_scaling_factor).to(x.dtype)
    return weights, chosen.to(torch.int32).contiguous(), scores if out_flag else torch.zeros_like(scores)
