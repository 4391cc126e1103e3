"""Weights as oneDNN reads them, for the few rows of a step of decoding or of a short prompt on the host.

Such a product takes as long as it takes to read the weight. oneDNN reads blocks, which it makes in each product from a
weight as checkpoints have it. Made once they are a second copy of the weight, to the bit as good.
"""

import logging
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import psutil
import torch
from torch import Tensor

from ascend_patch.ops.grouped_gemm import grouped_gemm
from ascend_patch.ops.grouped_gemm.by_expert import filled

logger = logging.getLogger(__name__)

ROWS = 64
"""With more, a product takes its time to compute."""
_SHARE_OF_FREE_MEMORY = 0.5


class Packed:
    """``x @ weight.T`` for ``x [..., K]`` of at most :data:`ROWS` rows and a ``weight [N, K]``, both in bfloat16."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight
        self._pack()

    def _pack(self) -> None:
        self._version = self._weight._version
        self._blocks = torch.ops.mkldnn._reorder_linear_weight(self._weight.detach(), ROWS)

    def __call__(self, x: Tensor) -> Tensor:
        if self._weight._version != self._version:  # other weights have been loaded
            self._pack()
        return torch.ops.mkldnn._linear_pointwise(x, self._blocks, None, "none", [], "")


def is_packable(weights: Iterable[Tensor]) -> bool:
    """Whether oneDNN multiplies these weights here, and the free memory holds another copy of them twice over."""
    weights = list(weights)
    if any(weight.device.type != "cpu" or weight.dtype != torch.bfloat16 for weight in weights):
        return False
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    size, free = sum(weight.nbytes for weight in weights), psutil.virtual_memory().available
    if size > _SHARE_OF_FREE_MEMORY * free:
        logger.info("weights are not packed: a copy of %d MiB is more than half of what is free", size >> 20)
        return False
    return True


def has_few_rows(x: Tensor) -> bool:
    """Whether ``x [..., K]`` has at most :data:`ROWS` rows."""
    return x.numel() <= ROWS * x.shape[-1]


def pack_output_layer(layer: Any) -> None:
    """Let a ``ColumnParallelLinear`` that is whole and has a weight of its own take :class:`Packed` for few rows."""
    whole, product = layer.forward, Packed(layer.weight)

    def forward(input_: Tensor, weight: Tensor | None = None, *args: Any, **options: Any) -> tuple[Tensor, None]:
        if weight is None and has_few_rows(input_) and not torch.is_grad_enabled():
            return product(input_), None
        return whole(input_, weight, *args, **options)

    layer.forward = forward


def linear(x: Tensor, weight: Tensor, packed: Packed | None) -> Tensor:
    """``x @ weight.T`` for any number of rows; ``packed`` is that of the weight, or None."""
    if packed is None or not has_few_rows(x):
        return torch.nn.functional.linear(x, weight)
    return packed(x)


def grouped_linear(x: Tensor, weight: Tensor, packed: Sequence[Packed] | None, counts: Sequence[int]) -> Tensor:
    """:func:`ascend_patch.ops.grouped_gemm.grouped_gemm`; ``packed`` are those of the experts, or None."""
    if packed is None or not 0 < x.shape[0] <= ROWS * len(counts):
        return grouped_gemm(x, weight, counts)
    parts = []
    for expert, (start, count) in enumerate(zip(accumulate(counts, initial=0), counts, strict=False)):
        if count:
            rows = filled(x, start, count)
            parts.append(linear(rows, weight[expert], packed[expert])[:count])
    return torch.cat(parts)
