"""The cpu device: ``torch.cuda`` means the host, NCCL means Gloo.

Complete enough that upstream's unpatched training paths run on a machine without any accelerator. What cannot
be translated raises (``unsupported.py``); nothing is silently left out. One module for each thing translated:

=================  ===========================================================================================
runtime            ``torch.cuda``: availability, device count and choice, properties, random number generators
streams            ``torch.cuda.Stream``, ``Event``
memory             the memory figures, measured on the process
tensors            factories, ``Tensor.to`` and its like, type names, ``torch.load``, autocast
data               ``DataLoader``
compilation        ``torch.compile``, ``torch.jit.script`` (shared with npu, one package up)
profiling          ``torch.profiler``, NVTX markers
process_groups     ``nccl`` to ``gloo``, device meshes
collectives        uneven ``all_gather`` and ``reduce_scatter``, list ``all_to_all``
one_rank           collectives in groups of one rank, without Gloo's copies
allocator          large blocks are kept between steps (nothing of PyTorch)
unsupported        CUDA graphs, memory pools and snapshots, sensors, the CUDA profiler
=================  ===========================================================================================
"""

from typing import ClassVar

from ascend_patch.devices import compilation
from ascend_patch.devices.base import Unavailable
from ascend_patch.devices.cpu import (
    allocator,
    collectives,
    data,
    memory,
    one_rank,
    process_groups,
    profiling,
    runtime,
    streams,
    tensors,
    unsupported,
)
from ascend_patch.devices.substitute import Substitutions

# runtime first: the others build objects that ask torch.cuda for the current device.
_TRANSLATIONS = (
    runtime,
    streams,
    memory,
    tensors,
    data,
    compilation,
    profiling,
    process_groups,
    collectives,
    one_rank,
    unsupported,
)


class CpuDevice:
    """The host as device. All tensors live in host memory, all ranks share the cores."""

    name: ClassVar[str] = "cpu"
    # PyTorch is translated for the whole process, so the record belongs to the class: a second object must
    # not wrap what the first one wrapped.
    _substitutions: ClassVar[Substitutions | None] = None

    @classmethod
    def unavailable(cls) -> Unavailable | None:
        """None: there is always a CPU."""
        return None

    def install(self) -> None:
        """Translate ``torch.cuda`` and ``torch.distributed``; all of it or, on an error, nothing."""
        if CpuDevice._substitutions is not None:
            return
        substitutions = Substitutions()
        try:
            for translation in _TRANSLATIONS:
                translation.install(substitutions)
        except BaseException:
            substitutions.revert()
            raise
        allocator.keep_large_blocks()
        CpuDevice._substitutions = substitutions

    def revert(self) -> None:
        """Give PyTorch its original objects back."""
        if CpuDevice._substitutions is not None:
            CpuDevice._substitutions.revert()
            allocator.restore()
            CpuDevice._substitutions = None

    def describe(self) -> str:
        """What is translated to what."""
        return "cpu (torch.cuda translated to host memory, nccl to gloo)"
