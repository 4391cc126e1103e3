"""``--moe-token-dispatcher-type alltoall``: the sizes that the host must know come in one copy.

Upstream copies up to five tensors of a few numbers each, into memory that is not pinned, so that the host waits for
every one of them. With ``--moe-permute-fusion`` it leaves the sizes of the chunks on the device, because
TransformerEngine's kernels read them there; reordering chunks with one concatenation needs them on the host.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

from ascend_patch.engine.patch import Patch
from ascend_patch.features.conditions import without_transformer_engine

if TYPE_CHECKING:
    from torch import Tensor

_AS_NUMPY = ("input_splits", "output_splits", "output_splits_tp")
_AS_TENSOR = ("num_out_tokens", "num_global_tokens_per_local_expert")
"""Attributes of the dispatcher that hold sizes, by what upstream makes of them on the host."""


def initialize(original: Callable) -> Callable:
    """``__init__``: the order of the chunks is known to the host from the start."""

    @wraps(original)
    def order_on_the_host(self, *args, **kwargs) -> None:
        original(self, *args, **kwargs)
        self.sort_input_by_local_experts = self.sort_input_by_local_experts.cpu()
        self.restore_output_by_local_experts = self.restore_output_by_local_experts.cpu()

    return order_on_the_host


def preprocess(original: Callable) -> Callable:
    """``preprocess``: the host has the chunks' sizes before it reorders them, also with the fused permutation."""

    @wraps(original)
    def sizes_before_second_permutation(self, routing_map):
        tokens_per_expert = original(self, routing_map)
        if self.num_local_experts > 1 and not self.drop_and_pad:
            self._maybe_update_cuda_sync_point("before_permutation_2")
        return tokens_per_expert

    return sizes_before_second_permutation


def maybe_dtoh_and_synchronize(original: Callable) -> Callable:
    """``_maybe_dtoh_and_synchronize``: upstream finds on the host already what it would copy there one by one."""

    @wraps(original)
    def in_one_copy(self, point, tokens_per_expert=None):
        if point == self.cuda_dtoh_point and not self.drop_and_pad:
            tokens_per_expert = _copy_sizes(self, tokens_per_expert)
        return original(self, point, tokens_per_expert)

    return in_one_copy


def _copy_sizes(dispatcher: Any, tokens_per_expert: "Tensor | None") -> "Tensor | None":
    """Start the copy on the stream whose event upstream records next and waits for when it needs the sizes."""
    import torch

    held = {name: getattr(dispatcher, name, None) for name in _AS_NUMPY + _AS_TENSOR}
    held["tokens_per_expert"] = tokens_per_expert
    sizes = {name: t for name, t in held.items() if isinstance(t, torch.Tensor) and t.device.type != "cpu"}
    if not sizes:
        return tokens_per_expert
    packed = torch.cat([t.reshape(-1) for t in sizes.values()])
    on_host = torch.empty_like(packed, device="cpu", pin_memory=True)
    stream = dispatcher.cuda_dtoh_stream
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        on_host.copy_(packed, non_blocking=True)
        packed.record_stream(stream)
    parts = dict(zip(sizes, on_host.split([t.numel() for t in sizes.values()]), strict=True))
    for name in sizes.keys() - {"tokens_per_expert"}:
        part = parts[name].view(sizes[name].shape)
        setattr(dispatcher, name, part.numpy() if name in _AS_NUMPY else part)
    return parts.get("tokens_per_expert", tokens_per_expert)


_CLASS = "megatron.core.transformer.moe.token_dispatcher:MoEAlltoAllTokenDispatcher"
_patch = partial(
    Patch,
    id="moe.split_sizes",
    mode="wrap",
    upstream=">=0.16.1,<0.20",
    reason=(
        "Upstream copies up to five tensors of sizes to the host one by one, and without TransformerEngine the fused "
        "permutation of chunks would fetch four more: each makes the host wait for the device."
    ),
    remove_when="upstream packs the sizes into one copy (its TODO), and keeps the chunks' sizes on the host.",
    when=without_transformer_engine,
)

PATCHES = (
    _patch(target=f"{_CLASS}.__init__", impl="ascend_patch.features.split_sizes:initialize"),
    _patch(target=f"{_CLASS}.preprocess", impl="ascend_patch.features.split_sizes:preprocess"),
    _patch(
        target=f"{_CLASS}._maybe_dtoh_and_synchronize",
        impl="ascend_patch.features.split_sizes:maybe_dtoh_and_synchronize",
    ),
)
