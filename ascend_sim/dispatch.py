"""Which operator of an npu tensor runs what: torch_npu's own kernel, the CPU's, one of ours, or an error."""

from pathlib import Path

import torch

#: torch_npu's own kernels for these only touch metadata, allocate, copy or call others: no device is asked to compute.
# fmt: off
HOST_ONLY = frozenset(
    {
        "_copy_from_and_resize", "_npu_storage_resize", "_pin_memory", "_reshape_alias", "as_strided",
        "as_strided_", "contiguous", "copy_memory_", "empty.memory_format", "empty_like", "empty_strided",
        "empty_with_format", "empty_with_format.names", "empty_with_swapped_memory", "get_npu_format",
        "get_storage_size", "is_pinned", "npu_change_data_ptr", "npu_format_cast", "record_stream", "resize_",
        "resize_as_", "set_", "set_.source_Storage", "set_.source_Storage_storage_offset", "set_.source_Tensor",
        "squeeze", "squeeze.dim", "unfold", "unsafe_empty_with_format", "view", "view_as_complex",
        "view_as_real",
    }
)
# fmt: on


def load(libraries: Path) -> None:
    """Load the compiled part; ``torch.ops.ascend_sim`` exists afterwards."""
    torch.ops.load_library(str(libraries / "libascend_sim.so"))
    torch.ops.ascend_sim.watch_order()


def install() -> None:
    """Give every operator that torch_npu registers for the device a kernel that works here, or one that raises.

    The kernels of :mod:`ascend_sim.kernels` are registered by :func:`ascend_sim.kernels.registry.register` after
    this, and replace what is refused here.
    """
    for name_space in ("aten", "npu"):
        on_host: list[str] = []
        refused: list[str] = []
        for name in _registered(name_space):
            if name in HOST_ONLY:
                continue
            on_cpu = torch._C._dispatch_has_computed_kernel_for_dispatch_key(f"{name_space}::{name}", "CPU")
            (on_host if on_cpu and name_space == "aten" else refused).append(name)
        torch.ops.ascend_sim.run_on_host(name_space, on_host)
        torch.ops.ascend_sim.refuse(name_space, refused)


def _registered(name_space: str) -> list[str]:
    prefix = f"{name_space}::"
    names = torch._C._dispatch_get_registrations_for_dispatch_key("PrivateUse1")
    return sorted({name.removeprefix(prefix) for name in names if name.startswith(prefix)})
