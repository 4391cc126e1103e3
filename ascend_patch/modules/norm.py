"""Layer norms with what upstream's torch fallback lacks: sequence parallelism and the parameter dtype."""

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.ops.rms_norm import rms_norm


def norm_parameter(config: TransformerConfig, hidden_size: int, value: float) -> torch.nn.Parameter:
    """A norm's weight or bias, ``[hidden_size]`` in ``config.params_dtype`` on the current device.

    ``sequence_parallel`` is the mark by which ``finalize_model_grads`` sums the gradient over the tensor
    parallel group when each rank has seen only its part of the sequence.
    """
    parameter = torch.nn.Parameter(
        torch.full((hidden_size,), value, dtype=config.params_dtype, device=torch.cuda.current_device())
    )
    parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
    return parameter


def normalize(
    x: torch.Tensor, config: TransformerConfig, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """RMSNorm or LayerNorm of ``x[..., H]`` as ``config.normalization`` says; same shape and dtype."""
    if config.layernorm_zero_centered_gamma:
        weight = weight + 1  # the parameter holds gamma - 1
    if config.normalization == "RMSNorm":
        return rms_norm(x, weight, eps)
    return torch.nn.functional.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def check_normalization(config: TransformerConfig) -> None:
    """Raise :class:`AscendPatchError` for a ``--normalization`` that is not implemented."""
    if config.normalization not in ("RMSNorm", "LayerNorm"):
        raise AscendPatchError(
            f"--normalization {config.normalization} is not implemented; RMSNorm and LayerNorm are. "
            "Switch patch norm.torch_norm off with ASCEND_PATCH_DISABLE to get upstream's own."
        )


class Norm(torch.nn.Module):
    """Stands for upstream's ``WrappedTorchNorm`` and ``TENorm``; builders call it with the same arguments.

    The last three arguments of ``WrappedTorchNorm`` have no meaning here, as upstream says of its own: the
    configuration decides.
    """

    def __init__(
        self,
        config: TransformerConfig,
        hidden_size: int,
        eps: float = 1e-5,
        persist_layer_norm: bool = False,
        zero_centered_gamma: bool = False,
        normalization: str = "LayerNorm",
    ) -> None:
        super().__init__()
        check_normalization(config)
        self.config = config
        self.eps = eps
        self.weight = norm_parameter(config, hidden_size, 0.0 if config.layernorm_zero_centered_gamma else 1.0)
        self.bias = norm_parameter(config, hidden_size, 0.0) if config.normalization == "LayerNorm" else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise ``x[..., H]`` over its last dimension."""
        return normalize(x, self.config, self.weight, self.bias, self.eps)
