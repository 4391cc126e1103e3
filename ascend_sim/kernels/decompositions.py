"""Upstream's decompositions of aten operators, put back where torch_npu replaces them past the dispatcher.

torch_npu registers autograd kernels of its own for some operators that upstream defines by other operators
(``one_hot``, ``kl_div``, ``l1_loss`` …). Some of those call the device's libraries from C++ without the dispatcher,
so nothing could be put under them. Upstream's definition computes the same from operators that can run here; it is a
different number of launches than on the device.
"""

from collections.abc import Callable
from typing import Any

import torch

_KEYS = ("AutogradPrivateUse1", "PrivateUse1")
#: torch_npu's own are needed: the first is a plain copy, the second calls matmul_backward, which has a kernel here.
_KEPT = frozenset({"aten::contiguous", "aten::matmul"})


def restore(library: torch.library.Library) -> list[str]:
    """Put the decompositions back; returns the operators' names."""
    restored = []
    for name in torch._C._dispatch_get_registrations_for_dispatch_key("AutogradPrivateUse1"):
        operator = name.removeprefix("aten::")
        if operator == name or name in _KEPT or operator == "scaled_dot_product_attention":
            continue
        if not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd"):
            continue
        base, _, overload = operator.partition(".")
        packet = getattr(torch.ops.aten, base, None)
        if packet is None or (overload or "default") not in packet.overloads():
            continue  # removed from Python: named-tensor overloads
        decomposition = _decomposition(getattr(packet, overload or "default"))
        for key in _KEYS:
            library.impl(operator, decomposition, key, allow_override=True)
        restored.append(name)
    for key in _KEYS:
        library.impl("scaled_dot_product_attention", _attention, key, allow_override=True)
    return [*restored, "aten::scaled_dot_product_attention"]


def _decomposition(operator: torch._ops.OpOverload) -> Callable[..., Any]:
    def decomposed(*args: Any, **kwargs: Any) -> Any:
        return operator.decompose(*args, **kwargs)

    return decomposed


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Upstream's composite would ask the device which fused kernel to take; its plain form asks nothing."""
    return torch.ops.aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
    )[0]
