"""``hccl`` process groups of the simulated device: ``csrc/hccl.cpp`` over gloo.

``init_process_group("hccl")`` and ``new_group`` go through PyTorch's own code; only what the name ``hccl`` stands for
is another class. Its errors name the operation, the rank and the group.
"""

import functools
import importlib.machinery
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import torch.distributed as dist

_EXTENSION = "ascend_sim_hccl"

# The entries of ProcessGroupHCCL.Options.hccl_config that torch_npu reads, with the types it insists on
# (createHcclCommConfigWithOptions in torch_npu/csrc/distributed/ProcessGroupHCCL.cpp).
_CONFIG_TYPES = {
    "hccl_buffer_size": int,
    "qos_traffic_class": int,
    "qos_service_level": int,
    "hccl_sdma_qos": int,
    "hccl_op_expansion_mode": int,
    "hccl_world_rank_id": int,
    "hccl_job_id": int,
    "hccl_exec_timeout": int,
    "group_name": str,
    "hccl_algo": str,
    "hccl_retry_enable": str,
    "hccl_retry_params": str,
    "hccl_buffer_name": str,
}


def install(libraries: Path) -> None:
    """Make ``hccl`` the simulated backend, and ``lccl`` an error, for groups made from now on.

    Args:
        libraries: the directory that ``ascend_sim.build`` filled.

    Raises:
        RuntimeError: torch_npu has not registered ``hccl``.
    """
    backend = dist.Backend
    if "HCCL" not in backend._plugins:
        raise RuntimeError("torch_npu has not registered the backend hccl. Import torch_npu before this is installed.")
    # register_backend refuses a name that exists, hence the table itself
    create = functools.partial(_create_hccl, libraries)
    backend._plugins["HCCL"] = backend._BackendPlugin(create, True)
    backend._plugins["LCCL"] = backend._BackendPlugin(_refuse_lccl, True)


def _create_hccl(libraries: Path, backend_options: Any, options: Any) -> Any:
    """Build the backend of one group, with the options torch_npu would give it."""
    import torch_npu  # not above: whoever installs this has loaded it, whoever only reads it needs none

    options_class = torch_npu._C._distributed_c10d.ProcessGroupHCCL.Options
    if not isinstance(options, options_class):
        options = options_class()  # torch_npu takes nothing from ProcessGroupNCCL.Options and the like either
    options._timeout = backend_options.timeout
    options.is_high_priority_stream = False
    options.global_ranks_in_group = backend_options.global_ranks_in_group
    options.group_id = backend_options.group_id
    _check_config(options.hccl_config)
    gloo = dist.ProcessGroupGloo(
        dist.PrefixStore("simulated", backend_options.store),
        backend_options.group_rank,
        backend_options.group_size,
        timeout=backend_options.timeout,
    )
    return _extension(libraries).ProcessGroupHCCL(gloo, options, backend_options.global_ranks_in_group)


def _check_config(config: dict[str, Any]) -> None:
    for name, value in config.items():
        expected = _CONFIG_TYPES.get(name)
        if expected is not None and not isinstance(value, expected):
            raise RuntimeError(
                f"hccl_config[{name!r}] is {value!r} ({type(value).__name__}); torch_npu takes {expected.__name__}."
            )


def _refuse_lccl(backend_options: Any, options: Any) -> Any:
    raise RuntimeError("The backend lccl is not simulated. Use hccl.")


@functools.cache
def _extension(libraries: Path) -> ModuleType:
    path = libraries / f"{_EXTENSION}.so"
    loader = importlib.machinery.ExtensionFileLoader(_EXTENSION, str(path))
    spec = importlib.util.spec_from_file_location(_EXTENSION, path, loader=loader)
    if spec is None:
        raise ImportError(f"{path} cannot be loaded as a Python module.")
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
