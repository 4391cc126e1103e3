"""SwiGLU in one pass, for experts (with routing probabilities) and dense layers."""

from collections.abc import Callable
from functools import partial, wraps

from ascend_patch.engine.patch import Patch
from ascend_patch.features.conditions import where_eager


def weighted_bias_swiglu_impl(original: Callable) -> Callable:
    """``silu(gate) * up * weights``; input ``[tokens, 2F]``, weights ``[tokens, 1]``."""

    @wraps(original)
    def fused(input, bias, weights, fp8_input_store=False, *args, **kwargs):
        if bias is not None or fp8_input_store or args or kwargs:
            return original(input, bias, weights, fp8_input_store, *args, **kwargs)
        from ascend_patch.ops.swiglu import swiglu

        return swiglu(input, weights.squeeze(-1))

    return fused


def bias_swiglu_impl(original: Callable) -> Callable:
    """``silu(gate) * up``; input ``[..., 2F]``."""

    @wraps(original)
    def fused(input, bias, fp8_input_store=False, cpu_offload_input=False, *args, **kwargs):
        if bias is not None or fp8_input_store or cpu_offload_input or args or kwargs:
            return original(input, bias, fp8_input_store, cpu_offload_input, *args, **kwargs)
        from ascend_patch.ops.swiglu import swiglu

        return swiglu(input)

    return fused


_MODULE = "megatron.core.fusions.fused_bias_swiglu"
_patch = partial(
    Patch,
    id="activation.swiglu",
    mode="wrap",
    upstream=">=0.16.1,<0.20",
    reason="Upstream fuses SwiGLU with torch.compile, which needs a CUDA or Triton back end; eager it is 9 passes.",
    remove_when="torch.compile runs on npu and its kernel is as fast as npu_swiglu.",
    when=where_eager,
)

PATCHES = (
    _patch(
        target=f"{_MODULE}:weighted_bias_swiglu_impl", impl="ascend_patch.features.activation:weighted_bias_swiglu_impl"
    ),
    _patch(target=f"{_MODULE}:bias_swiglu_impl", impl="ascend_patch.features.activation:bias_swiglu_impl"),
)
