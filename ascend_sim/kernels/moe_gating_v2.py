"""Expert choice of a mixture of experts in either order: npu_moe_gating_top_k_softmax_v2. No gradient exists."""

import torch

from ascend_sim.kernels.checks import require_choice, require_dim, require_dtype, require_range, require_shape, wide
from ascend_sim.kernels.registry import kernel


@kernel(
    "npu_moe_gating_top_k_softmax_v2",
    source="torch_npu 2.9.1 _op_plugin_docs.py; ties, finished rows, the empty third result: Ascend/op-plugin 26.0.0 "
    "test/test_custom_ops/test_npu_moe_gating_top_k_softmax_v2.py; README.md in gitcode.com/cann/ops-transformer, "
    "moe/moe_gating_top_k_softmax_v2",
)
def npu_moe_gating_top_k_softmax_v2(
    x: torch.Tensor, k: int, finished: torch.Tensor | None, renorm: int | None, output_softmax: bool | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Softmax and the `k` largest of it (`renorm` 0), or the `k` largest and their softmax (1).

    Of equal logits the expert with the lower index comes first.

    Args:
        x: Logits ``[tokens, experts]`` or ``[batch, tokens, experts]``, float16, bfloat16 or float32.
        k: 1 to the number of experts, at most 1,024.
        finished: Rows that take no part, bool; their experts are all ``experts``.
        renorm: 0 or 1.
        output_softmax: With `renorm` 0, return the softmax over all experts too.

    Returns:
        Probabilities (data type of `x`) and experts (int32), each ``[…, k]``; the softmax (float32) or nothing.
    """
    require_dtype("x", x)
    require_dim("x", x, 2, 3)
    experts = x.shape[-1]
    require_range("k", k, 1, min(experts, 1024))
    require_choice("renorm", renorm or 0, (0, 1))
    softmax = torch.softmax(wide(x), -1)
    logits, chosen = (x if renorm else softmax).sort(dim=-1, descending=True, stable=True)
    best, chosen = logits[..., :k], chosen[..., :k].to(torch.int32)
    probs = torch.softmax(wide(best), -1) if renorm else best
    if finished is not None:
        require_dtype("finished", finished, (torch.bool,))
        require_shape("finished", finished, tuple(x.shape[:-1]))
        chosen = chosen.masked_fill(finished.unsqueeze(-1), experts)
    shown = softmax.float() if output_softmax and not renorm else torch.empty(0)
    return probs.to(x.dtype).contiguous(), chosen.contiguous(), shown
