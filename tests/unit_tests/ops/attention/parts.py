"""Attention in two parts, merged by their statistics, against the whole in float64."""

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from ascend_patch.ops.attention import reference
from tests.unit_tests.ops.checks import relative_error, results_and_gradients


def check_parts(variant: ModuleType, tensors: Sequence[Tensor], tolerance: float, device: str = "cpu") -> None:
    """The first keys, seen by every query, and the last ones, as many as queries, seen causally.

    Output, statistics and gradients are compared.
    """
    scale = tensors[0].shape[-1] ** -0.5
    query, key, value = (t.to(device) for t in tensors)
    seen = key.shape[0] - query.shape[0]
    parts = [(key[:seen], value[:seen], False), (key[seen:], value[seen:], True)]
    results = [variant.attention_forward(query, k, v, scale=scale, causal=causal) for k, v, causal in parts]
    lse = torch.logaddexp(results[0][1], results[1][1])
    by_head = (query.shape[2], value.shape[3])
    shares = [torch.exp(part - lse).permute(2, 0, 1).unsqueeze(-1) for _, part in results]
    output = sum(o.unflatten(-1, by_head) * share for (o, _), share in zip(results, shares, strict=True))
    output = output.flatten(2).to(query.dtype)
    grad = torch.randn(output.shape).to(output.dtype)

    def whole(q, k, v):
        return reference.attention(q, k, v, scale=scale, causal=True)

    wide = [t.double() for t in tensors]
    expected, (grad_query, grad_key, grad_value) = results_and_gradients(whole, wide, grad)
    _, expected_lse = reference.attention_forward(*wide, scale=scale, causal=True)
    assert relative_error(output.cpu(), expected) <= tolerance
    assert lse.dtype == (torch.float64 if query.dtype == torch.float64 else torch.float32)
    assert relative_error(lse.cpu(), expected_lse) <= tolerance
    backward = [
        variant.attention_backward(grad.to(device), query, k, v, output, lse, scale=scale, causal=causal)
        for k, v, causal in parts
    ]
    found = [
        sum(grads[0].double() for grads in backward),
        torch.cat([grads[1] for grads in backward]),
        torch.cat([grads[2] for grads in backward]),
    ]
    for gradient, wanted in zip(found, (grad_query, grad_key, grad_value), strict=True):
        assert relative_error(gradient.cpu(), wanted) <= tolerance
