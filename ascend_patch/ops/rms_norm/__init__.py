"""Root mean square normalisation over the last dimension (Zhang and Sennrich 2019, arXiv:1910.07467)."""

from torch import Tensor

from ascend_patch.ops.registry import run


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x ** 2) + eps) * weight``, with the mean over the last dimension.

    Args:
        x: ``[..., H]``, floating point, any strides.
        weight: ``[H]``; its dtype may differ from that of ``x``.
        eps: added to the mean square.

    Returns:
        ``[..., H]`` in the dtype of ``x``. Everything between input and result is float32 (float64 for
        float64), so unlike Hugging Face's ``MixtralRMSNorm`` the normalised value is not rounded before it
        meets the weight.

    Gradients flow to ``x`` and ``weight``, in their dtypes, and are deterministic. Against a float64
    evaluation the relative error stays below 1e-5 (float32) and 1e-2 (bfloat16).

    Raises:
        ValueError: ``weight`` is not one-dimensional with the length of the last dimension of ``x``.
    """
    if weight.shape != x.shape[-1:]:
        raise ValueError(
            f"rms_norm: weight has shape {tuple(weight.shape)}, x has shape {tuple(x.shape)}; "
            "weight must be one-dimensional, as long as the last dimension of x."
        )
    return run("rms_norm", "rms_norm", x, weight, eps)
