"""Without gradients an operator computes what it does with them, to the bit: a recomputed layer is the layer."""

from collections.abc import Callable

import pytest
import torch

from ascend_patch.ops.function import apply
from ascend_patch.ops.grouped_gemm import grouped_gemm
from ascend_patch.ops.permute import permute, unpermute
from ascend_patch.ops.rms_norm import rms_norm
from ascend_patch.ops.rotary import apply_rotary
from ascend_patch.ops.swiglu import swiglu
from ascend_patch.ops.topk_softmax import topk_softmax

TOKENS, HIDDEN, EXPERTS = 7, 48, 5


def _moved(x: torch.Tensor) -> list[torch.Tensor]:
    logits = torch.randn(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(x.shape[0]))
    probs, routing_map = topk_softmax(logits, 2)
    permuted, row_probs, order = permute(x, routing_map, probs, 2 * TOKENS)
    return [probs, permuted, row_probs, unpermute(permuted, order, x.shape)]


OPERATORS: dict[str, Callable[[torch.Tensor], object]] = {
    "rms_norm": lambda x: rms_norm(x, torch.linspace(0.5, 1.5, HIDDEN, dtype=x.dtype), 1e-5),
    "rms_norm, the weight in float32": lambda x: rms_norm(x, torch.linspace(0.5, 1.5, HIDDEN), 1e-5),
    "swiglu": lambda x: swiglu(x, torch.linspace(0, 1, TOKENS)),
    "rotary": lambda x: apply_rotary(x.view(TOKENS, 1, 4, -1), torch.arange(TOKENS * 12.0).view(TOKENS, 1, 1, 12)),
    "routing": _moved,
    # Multiples of 16 bytes go to a kernel, and on the host none does where an expert has no tokens.
    "grouped_gemm": lambda x: grouped_gemm(x, torch.ones(EXPERTS, 16, HIDDEN).to(x).cumsum(2), [1, 2, 1, 2, 1]),
    "grouped_gemm, empty experts": lambda x: grouped_gemm(x, torch.ones(EXPERTS, 3, HIDDEN).to(x), [0, 4, 0, 3, 0]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_gradients_do_not_change_the_result(operator: Callable, dtype: torch.dtype) -> None:
    x = torch.randn(TOKENS, HIDDEN, dtype=dtype)
    with torch.no_grad():
        without = operator(x)
    with_gradients = operator(x.requires_grad_())
    torch.testing.assert_close(without, with_gradients, rtol=0, atol=0)


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.kept = 2
        return x * ctx.kept

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.kept


def test_apply_has_gradients_where_they_are_wanted() -> None:
    x = torch.randn(3, requires_grad=True)
    apply(_Double, x).sum().backward()
    assert x.grad.tolist() == [2, 2, 2]
    with torch.no_grad():
        assert not apply(_Double, x).requires_grad
