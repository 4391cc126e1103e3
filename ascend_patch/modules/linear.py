"""A column parallel linear layer that normalises its input first, with TransformerEngine's parameter names."""

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.transformer.transformer_config import TransformerConfig

from ascend_patch.modules.norm import check_normalization, norm_parameter, normalize


class LayerNormColumnParallelLinear(ColumnParallelLinear):
    """Stands for ``TELayerNormColumnParallelLinear``: ``y = Norm(x) @ weight.T``.

    The norm's parameters are ``layer_norm_weight`` and, for LayerNorm, ``layer_norm_bias`` of this module, so
    that checkpoints carry the names that TransformerEngine gives them on a GPU.
    """

    def __init__(self, input_size: int, output_size: int, *, config: TransformerConfig, **kwargs) -> None:
        super().__init__(input_size, output_size, config=config, **kwargs)
        check_normalization(config)
        zero_centered = config.layernorm_zero_centered_gamma
        self.layer_norm_weight = norm_parameter(config, input_size, 0.0 if zero_centered else 1.0)
        self.layer_norm_bias = norm_parameter(config, input_size, 0.0) if config.normalization == "LayerNorm" else None

    def forward(self, input_: torch.Tensor, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        """``input_`` is ``[s, b, h]`` (``[s / tp, b, h]`` with sequence parallelism); returns output and bias."""
        normed = normalize(
            input_, self.config, self.layer_norm_weight, self.layer_norm_bias, self.config.layernorm_epsilon
        )
        return super().forward(normed, *args, **kwargs)
