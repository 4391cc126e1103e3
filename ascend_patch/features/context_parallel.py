"""``--context-parallel-size``: what the flags beside it cannot be is said when they are parsed, no mask is made, and
packed samples are cut.

The attention itself is installed with the others: :mod:`ascend_patch.modules.attention`.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

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
    if getattr(args, "dataloader_inter_document_masking", False) and not args.sft:
        raise AscendPatchError(
            f"--dataloader-inter-document-masking was given with --context-parallel-size {ranks}: attention is split "
            "document by document, and upstream cuts these samples as a whole. Leave it out, or use --sft."
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
    if args.sft:
        for name in types:
            limits.check_packed(name)
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


def part_of_packed_batch(batch: dict[str, Any], cp_group: Any) -> dict[str, Any]:
    """Upstream's function that cuts a batch of ``--sft``: each sequence of ``cu_seqlens [1, k + 1]`` by itself."""
    from ascend_patch.context_parallel import batch as packed

    padded = batch["cu_seqlens_padded"]
    cu_seqlens = (batch["cu_seqlens"] if padded is None else padded)[0].tolist()
    return packed.part_of_packed_batch(batch, cu_seqlens, cp_group.size(), cp_group.rank())


def get_thd_batch_on_this_cp_rank(original: Callable) -> Callable:
    """The same until 0.17, where it also makes the ``PackedSeqParams``, and ``cu_seqlens`` are ``[k + 1]``."""

    @wraps(original)
    def part(batch, cu_seqlens, cu_seqlens_padded, max_seqlen, cp_size=None, cp_rank=None):
        from megatron.core import parallel_state

        from ascend_patch.compat import packing
        from ascend_patch.context_parallel import batch as packed

        ranks = parallel_state.get_context_parallel_world_size() if cp_size is None else cp_size
        rank = parallel_state.get_context_parallel_rank() if cp_rank is None else cp_rank
        packing.check_context_parallel(ranks)
        batch, params = original(batch, cu_seqlens, cu_seqlens_padded, max_seqlen, cp_size=1, cp_rank=0)
        bounds = cu_seqlens if cu_seqlens_padded is None else cu_seqlens_padded
        return packed.part_of_packed_batch(batch, bounds.tolist(), ranks, rank), params

    return part


_HERE = "ascend_patch.features.context_parallel"
_packed_batch = partial(
    Patch,
    id="context_parallel.packed_batches",
    reason="Upstream cuts packed samples (--sft) with a function of TransformerEngine, which is missing.",
    remove_when="upstream cuts packed samples without TransformerEngine.",
    when=without_transformer_engine,
)

PATCHES = (
    Patch(
        id="context_parallel.arguments",
        target="megatron.training.arguments:validate_args",
        impl=f"{_HERE}:without_mask",
        mode="wrap",
        upstream=">=0.17,<0.20",
        reason=(
            "Upstream notices some of what cannot be split in an assertion without words, the rest not at all or in "
            "the first attention. Its data loader makes a mask of sequence x sequence, which nobody reads."
        ),
        remove_when="upstream's own attention does context parallelism and checks the flags.",
        when=without_transformer_engine,
    ),
    _packed_batch(
        target="megatron.core.utils:get_thd_batch_on_this_cp_rank",
        impl=f"{_HERE}:get_thd_batch_on_this_cp_rank",
        mode="wrap",
        upstream=">=0.16.1,<0.18",
    ),
    _packed_batch(
        target="megatron.core.utils:get_sft_batch_on_this_cp_rank",
        impl=f"{_HERE}:part_of_packed_batch",
        mode="replace",
        upstream=">=0.18,<0.19",
        consumers=("megatron.core.utils:get_batch_on_this_cp_rank",),
    ),
    _packed_batch(
        target="megatron.core.utils:_get_batch_on_this_cp_rank_per_document_balancing",
        impl=f"{_HERE}:part_of_packed_batch",
        mode="replace",
        upstream=">=0.19,<0.20",
        consumers=("megatron.core.utils:get_batch_on_this_cp_rank",),
    ),
)
