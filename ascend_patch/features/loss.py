"""Cross entropy over the vocabulary without float32 copies of the logits."""

from collections.abc import Callable
from functools import wraps

from ascend_patch.engine.patch import Patch
from ascend_patch.features.conditions import without_transformer_engine


def vocab_parallel_cross_entropy(original: Callable) -> Callable:
    """``vocab_parallel_logits [s, b, V / tp]``, ``target [s, b]`` -> loss ``[s, b]`` float32."""

    @wraps(original)
    def fused(vocab_parallel_logits, target, label_smoothing=0.0, tp_group=None):
        from megatron.core.parallel_state import get_tensor_model_parallel_group

        from ascend_patch.ops.cross_entropy import cross_entropy

        group = tp_group if tp_group is not None else get_tensor_model_parallel_group()
        vocab_start = group.rank() * vocab_parallel_logits.shape[-1]
        return cross_entropy(
            vocab_parallel_logits, target, label_smoothing, group if group.size() > 1 else None, vocab_start
        )

    return fused


PATCHES = (
    Patch(
        id="loss.cross_entropy",
        target="megatron.core.tensor_parallel.cross_entropy:vocab_parallel_cross_entropy",
        impl="ascend_patch.features.loss:vocab_parallel_cross_entropy",
        mode="wrap",
        upstream=">=0.16.1,<0.20",
        reason=(
            "Upstream copies the logits to float32 and keeps the exponentials: 12 bytes a logit held until the "
            "backward pass, of the largest activation there is."
        ),
        remove_when="--cross-entropy-loss-fusion needs neither TransformerEngine nor torch.compile upstream.",
        when=without_transformer_engine,
    ),
)
