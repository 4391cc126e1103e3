"""Samples of several sequences (``cu_seqlens``): how each release of upstream takes them.

Up to 0.18 a micro batch is one such sample. From 0.19 on there may be more, whose ``cu_seqlens`` are filled up to one
length. In 0.17 the last pipeline stages hear of them on the first tensor parallel rank only.
"""

from collections.abc import Callable
from functools import wraps

import torch
from megatron.core import mpu, tensor_parallel
from megatron.core import utils as core_utils
from megatron.core.package_info import __version__
from megatron.core.packed_seq_params import PackedSeqParams
from packaging.version import Version

from ascend_patch.engine.errors import AscendPatchError

_flatten = getattr(core_utils, "flatten_batch_for_packed_sequences", None)


def check(micro_batch_size: int, pipeline_stages: int) -> None:
    """Raise :class:`AscendPatchError` for batches that this upstream cannot take."""
    if micro_batch_size == 1:
        return
    if _flatten is None:
        raise AscendPatchError(
            f"--micro-batch-size {micro_batch_size} was given, but with --sft Megatron-LM {__version__} takes one "
            "packed sample at a time. Use --micro-batch-size 1 with a longer --seq-length, or Megatron-LM 0.19."
        )
    if pipeline_stages > 1:
        raise AscendPatchError(
            f"--micro-batch-size {micro_batch_size} was given, but with --sft and pipeline stages Megatron-LM "
            f"{__version__} takes one packed sample at a time. Use --micro-batch-size 1 with a longer --seq-length."
        )


def check_context_parallel(ranks: int) -> None:
    """Raise :class:`AscendPatchError` if this upstream cannot share packed samples between so many ranks."""
    if ranks > 1 and Version(__version__) < Version("0.17"):
        raise AscendPatchError(
            f"--sft was given with --context-parallel-size {ranks}, but Megatron-LM {__version__} hands the boundaries "
            "of packed samples (cu_seqlens) on with a dimension too many. Use Megatron-LM 0.17.1 or newer, or "
            "--context-parallel-size 1."
        )


def cu_seqlens(boundaries: torch.Tensor) -> torch.Tensor:
    """``boundaries [k + 1]`` int32 in the form in which samples are collated: at most as many as positions."""
    if _flatten is None:
        return boundaries
    length = int(boundaries[-1])
    filled = torch.full((length + 1,), length, dtype=torch.int32)
    filled[: len(boundaries)] = boundaries
    return filled


def packed_seq_params(batch: dict[str, torch.Tensor]) -> PackedSeqParams | None:
    """What a model needs to know of a batch with ``cu_seqlens``, which becomes one sequence in place; else None."""
    if "cu_seqlens" not in batch:
        return None
    samples = {"tokens_per_sample": batch["tokens"].shape[1]} if _flatten else {}
    if _flatten:
        _flatten(batch)
    bounds, longest = batch["cu_seqlens"][0], int(batch["max_seqlen"].max())
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=bounds,
        cu_seqlens_kv=bounds,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        **samples,
    )


def tell_every_rank(original: Callable) -> Callable:
    """``get_batch_on_this_tp_rank`` of 0.17, after which every rank of a later stage has ``cu_seqlens``."""

    @wraps(original)
    def get_batch_on_this_tp_rank(data_iterator, mtp_on_this_rank=False):
        from megatron.training import get_args

        batch = original(data_iterator, mtp_on_this_rank=mtp_on_this_rank)
        if not get_args().sft or mtp_on_this_rank or mpu.is_pipeline_first_stage():
            return batch
        return batch | tensor_parallel.broadcast_data(["cu_seqlens", "max_seqlen"], batch, torch.int32)

    return get_batch_on_this_tp_rank
