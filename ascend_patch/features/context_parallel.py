"""``--context-parallel-size``: what the flags beside it cannot be is said when they are parsed, and no mask is made.

The attention itself is installed with the others: :mod:`ascend_patch.modules.attention`.
"""

from collections.abc import Callable
from functools import wraps

from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.engine.patch import Patch
from ascend_patch.features.conditions import without_transformer_engine


def check(args) -> None:
    """Raise :class:`AscendPatchError` for flags with which the attention of some layer cannot be split."""
    ranks = args.context_parallel_size
    if ranks == 1:
        return
    from megatron.core.transformer.utils import is_layer_window_attention

    from ascend_patch.context_parallel import limits

    if args.seq_length is not None:
        limits.check_sequence(args.seq_length, ranks)
    if args.sft:
        raise AscendPatchError(
            f"--sft was given with --context-parallel-size {ranks}: upstream cuts packed samples with a function of "
            "TransformerEngine. Use --context-parallel-size 1."
        )
    if args.transformer_impl == "local" and args.create_attention_mask_in_dataloader:
        raise AscendPatchError(
            f"--transformer-impl local with --context-parallel-size {ranks} would need a mask of sequence x sequence. "
            "Add --no-create-attention-mask-in-dataloader: causal attention needs none."
        )
    types = [limits.communication_type(name) for name in args.cp_comm_type]
    if len(types) not in (1, args.num_layers):
        raise AscendPatchError(
            f"--cp-comm-type names {len(types)} types for --num-layers {args.num_layers}; it takes one, or one a layer."
        )
    if args.hierarchical_context_parallel_sizes is not None:
        limits.check_hierarchy(ranks, args.hierarchical_context_parallel_sizes)
    if args.num_layers is None or args.num_attention_heads is None:
        return  # upstream says so
    for i in range(args.num_layers):
        limits.check_layer(
            types[i % len(types)],
            ranks,
            args.hierarchical_context_parallel_sizes,
            args.num_attention_heads // args.tensor_model_parallel_size,
            windowed=is_layer_window_attention(args.window_size, args.window_attn_skip_freq, i + 1),
            dropout=args.attention_dropout,
        )


def without_mask(original: Callable) -> Callable:
    """``validate_args`` after :func:`check`, without a mask of sequence x sequence that nobody reads."""

    @wraps(original)
    def validate_args(args, *rest, **kwargs):
        check(args)
        if args.context_parallel_size > 1:
            args.create_attention_mask_in_dataloader = False
        return original(args, *rest, **kwargs)

    return validate_args


PATCHES = (
    Patch(
        id="context_parallel.arguments",
        target="megatron.training.arguments:validate_args",
        impl="ascend_patch.features.context_parallel:without_mask",
        mode="wrap",
        upstream=">=0.17,<0.20",
        reason=(
            "Upstream notices some of what cannot be split in an assertion without words, the rest not at all or in "
            "the first attention. Its data loader makes a mask of sequence x sequence, which nobody reads."
        ),
        remove_when="upstream's own attention does context parallelism and checks the flags.",
        when=without_transformer_engine,
    ),
)
