"""The passes of a grouped GEMM that a layer written by hand calls by themselves."""

from types import ModuleType

import torch
from torch import Tensor

from ascend_patch.ops.grouped_gemm import reference
from tests.unit_tests.ops.checks import TOLERANCES, relative_error, results_and_gradients


def check_passes(variant: ModuleType, x: Tensor, weight: Tensor, counts: list[int]) -> None:
    """Products with the weights and their transposes, and both kinds of weight gradient, against float64."""
    grad_y = torch.randn(x.shape[0], weight.shape[1], device=x.device).to(x.dtype)
    wide = [t.double().cpu() for t in (x, weight)]
    y, (grad_x, grad_weight) = results_and_gradients(
        lambda a, b: reference.grouped_gemm(a, b, counts), wide, grad_y.double().cpu()
    )
    found_y, found_x = torch.empty_like(grad_y), torch.empty_like(x)
    variant.grouped_product(x, weight.transpose(1, 2), counts, found_y)
    variant.grouped_product(grad_y, weight, counts, found_x)
    accumulated = torch.randn(weight.shape, device=x.device)
    before = accumulated.clone()
    assert variant.grouped_weight_gradient(x, grad_y, counts, accumulated) is None
    found_weight = variant.grouped_weight_gradient(x, grad_y, counts)
    pairs = [(found_y, y), (found_x, grad_x), (found_weight, grad_weight)]
    for found, expected in pairs:
        assert found.dtype == x.dtype
        assert relative_error(found.cpu(), expected) <= TOLERANCES[x.dtype]
    assert relative_error((accumulated - before).cpu(), grad_weight) <= max(TOLERANCES[x.dtype], 1e-5)
