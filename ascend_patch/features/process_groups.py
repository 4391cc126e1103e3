"""Process groups: what ``--high-priority-stream-groups`` and NCCL's configuration file mean to HCCL; hosts of ranks."""

from collections.abc import Callable
from functools import wraps

from ascend_patch import absent
from ascend_patch.engine.patch import Patch
from ascend_patch.features.conditions import on_npu

_OF_BOTH = {"is_high_priority_stream"}
"""Settings that NCCL and HCCL have in common."""


def get_nccl_options(pg_name, nccl_comm_cfgs):
    """Options of HCCL for the group of that name, None where nothing is set for it.

    Raises:
        AscendPatchError: ``nccl_comm_cfgs`` sets something that HCCL does not have.
    """
    import torch

    from ascend_patch.engine.errors import AscendPatchError

    if pg_name not in nccl_comm_cfgs:
        return None
    settings = nccl_comm_cfgs[pg_name]
    others = sorted(settings.keys() - _OF_BOTH)
    if others:
        raise AscendPatchError(
            f"--nccl-communicator-config-path sets {', '.join(others)} of the process group {pg_name!r}, which say how "
            "NCCL uses a GPU; HCCL has no such settings. Leave them out of the file. HCCL_BUFFSIZE sets the buffer of "
            "every group, HCCL_CONNECT_TIMEOUT and HCCL_EXEC_TIMEOUT how long ranks wait for each other."
        )
    options = torch.distributed.ProcessGroupNCCL.Options()  # HCCL's, in torch_npu's translation
    options.is_high_priority_stream = settings.get("is_high_priority_stream", False)
    return options


def initialize_distributed(original: Callable) -> Callable:
    """``_initialize_distributed`` that also tells the job the host of this rank, for the error that one is missing."""

    @wraps(original)
    def initialize(*args, **kwargs):
        result = original(*args, **kwargs)
        absent.leave_host()
        return result

    return initialize


PATCHES = (
    Patch(
        id="process_groups.hccl_options",
        target="megatron.core.parallel_state:get_nccl_options",
        impl="ascend_patch.features.process_groups:get_nccl_options",
        mode="replace",
        upstream=">=0.16.1,<0.20",
        reason="Upstream passes a keyword that HCCL's options do not take (TypeError), and settings of NCCL's kernels.",
        remove_when="torch_npu's options take NCCL's arguments.",
        when=on_npu,
    ),
    Patch(
        id="process_groups.hosts",
        target="megatron.training.initialize:_initialize_distributed",
        impl="ascend_patch.features.process_groups:initialize_distributed",
        mode="wrap",
        upstream=">=0.17,<0.20",
        reason="A rank that others wait for in vain cannot say on which host it is.",
        remove_when="The errors of PyTorch's timeouts name the missing rank and its host.",
    ),
)
