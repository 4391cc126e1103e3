"""Upstream's parallel linear layers with their products overlapped with their communication."""

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear

from ascend_patch.modules.main_grad import with_main_grad
from ascend_patch.ops.parallel_linear import all_gather_linear, linear_reduce_scatter


def overlaps(layer: ColumnParallelLinear | RowParallelLinear, weight: torch.Tensor) -> bool:
    """Whether the flags ask for it, and the layer has none of what upstream's code alone does.

    That is gradients in buffers of Megatron FSDP, and weights split once more (``gtp_remat``).
    """
    return (
        layer.config.tp_comm_overlap
        and not hasattr(weight, "__fsdp_param__")
        and getattr(layer, "gtp_remat_size", 1) == 1
    )


def column_parallel(
    layer: ColumnParallelLinear, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """``[s / tp, b, h]`` -> ``[s, b, out / tp]``."""
    output = _rows(all_gather_linear, layer, x, weight)
    return output if bias is None else output + bias


def row_parallel(layer: RowParallelLinear, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``[s, b, in / tp]`` -> ``[s / tp, b, h]`` and the bias that the caller adds."""
    output = _rows(linear_reduce_scatter, layer, x, layer.weight)
    if layer.skip_bias_add:
        return output, layer.bias
    return (output if layer.bias is None else output + layer.bias), None


def _rows(operator, layer, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    weight, main_grad = with_main_grad(weight, layer.gradient_accumulation_fusion)
    output = operator(x.flatten(0, -2), weight, layer.tp_group, main_grad)
    return output.view(-1, *x.shape[1:-1], output.shape[-1])
