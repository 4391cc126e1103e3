"""Cross entropy over a vocabulary that may be split between tensor parallel ranks."""

from torch import Tensor
from torch.distributed import ProcessGroup

from ascend_patch.ops.registry import run


def cross_entropy(
    vocab_parallel_logits: Tensor,
    target: Tensor,
    label_smoothing: float = 0.0,
    group: ProcessGroup | None = None,
    vocab_start: int = 0,
) -> Tensor:
    """Negative log-likelihood of each target, as Megatron's ``vocab_parallel_cross_entropy``.

    Args:
        vocab_parallel_logits: ``[..., V / tp]``, floating point, this rank's part of the vocabulary. bfloat16
            needs no conversion beforehand.
        target: ``[...]`` int64, indices into the whole vocabulary. A target that no rank holds has a finite
            loss without meaning, in most variants as if its logit were the row's maximum; mask such a loss.
        label_smoothing: ``a`` in ``[0, 1)``: the target gets the weight ``1 - a``, every other token
            ``a / (V - 1)``. With several ranks the mean runs over the whole vocabulary (upstream's over each
            rank's part).
        group: the ranks that share the vocabulary in equal parts; None for one rank.
        vocab_start: index of the first token that this rank holds.

    Returns:
        The loss, ``[...]``, float32 (float64 for float64); the same on all ranks of ``group``.

    The gradient of the logits has their dtype and is deterministic. Sums and exponentials are float32; the
    relative error of loss and gradient stays below 1e-5 (float32), that of a bfloat16 gradient below 2e-2.

    Raises:
        ValueError: the shapes do not fit, or ``label_smoothing`` is out of range.
    """
    if target.shape != vocab_parallel_logits.shape[:-1]:
        raise ValueError(
            f"cross_entropy: target has shape {tuple(target.shape)}, logits {tuple(vocab_parallel_logits.shape)}; "
            "target must have the shape of the logits without the last dimension."
        )
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"cross_entropy: label_smoothing must be in [0, 1), found {label_smoothing}.")
    return run("cross_entropy", "cross_entropy", vocab_parallel_logits, target, label_smoothing, group, vocab_start)
