"""Process groups and device meshes: whoever asks for NCCL gets Gloo."""

import functools
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
import torch.distributed.device_mesh as device_mesh
import torch.distributed.distributed_c10d as c10d

from ascend_patch.devices.cpu.translation import HOST, names_cuda
from ascend_patch.devices.substitute import Substitutions


def install(substitutions: Substitutions) -> None:
    """Substitute what makes groups, and ``barrier``, which names devices."""
    owners = (dist, c10d, device_mesh)
    substitutions.set_in_all(owners, "init_process_group", _init_process_group(dist.init_process_group))
    substitutions.set_in_all(owners, "new_group", _new_group(dist.new_group))
    substitutions.set_in_all(owners, "barrier", _barrier(dist.barrier))
    substitutions.wrap(device_mesh.DeviceMesh, "__init__", _device_mesh)


def _names_nccl(backend: Any) -> bool:
    """True for ``"nccl"`` and for lists such as ``"cpu:gloo,cuda:nccl"``."""
    return isinstance(backend, str) and "nccl" in backend.lower()


def _init_process_group(init_process_group: Callable) -> Callable:
    @functools.wraps(init_process_group)
    def init_host_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> None:
        if backend is None or _names_nccl(backend):  # None would bind CUDA tensors to NCCL
            backend = "gloo"
            kwargs.pop("pg_options", None)  # ProcessGroupNCCL.Options
        kwargs.pop("device_id", None)  # binds NCCL to a GPU; Gloo refuses it
        init_process_group(backend, *args, **kwargs)

    return init_host_process_group


def _new_group(new_group: Callable) -> Callable:
    @functools.wraps(new_group)
    def new_host_group(
        ranks: Any = None,
        timeout: Any = None,
        backend: str | None = None,
        pg_options: Any = None,
        **kwargs: Any,
    ) -> Any:
        kwargs.pop("device_id", None)
        if backend is None or _names_nccl(backend):
            # None means the backend of the default group, which is Gloo already.
            backend = None if backend is None else "gloo"
            pg_options = None
        return new_group(ranks, timeout, backend, pg_options, **kwargs)

    return new_host_group


def _device_mesh(init: Callable) -> Callable:
    """``DeviceMesh("cuda", …)`` makes its own groups, of the backend that belongs to the device."""

    @functools.wraps(init)
    def init_on_host(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        init(self, HOST.type if names_cuda(device_type) else device_type, *args, **kwargs)

    return init_on_host


def _barrier(barrier: Callable) -> Callable:
    @functools.wraps(barrier)
    def host_barrier(group: Any = None, async_op: bool = False, device_ids: Any = None) -> Any:
        # device_ids tells NCCL where to put the tensor it synchronises with; Gloo needs none.
        return barrier(group=group, async_op=async_op)

    return host_barrier
