"""Every translation is there after install() and gone, to identity, after revert()."""

import pytest
import torch
import torch.cuda.graphs
import torch.cuda.memory
import torch.cuda.random
import torch.cuda.streams
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
import torch.serialization
from torch.distributed import device_mesh

from ascend_patch.devices import cpu
from ascend_patch.devices.cpu import CpuDevice

OWNERS = (
    torch,
    torch.Tensor,
    torch.nn.Module,
    torch.UntypedStorage,
    torch.TypedStorage,
    torch.autocast,
    torch.accelerator,
    torch.jit,
    torch.cuda,
    torch.cuda.graphs,
    torch.cuda.memory,
    torch.cuda.nvtx,
    torch.cuda.random,
    torch.cuda.streams,
    torch.utils._device.DeviceContext,
    torch.autograd.profiler.profile,
    dist,
    c10d,
    device_mesh,
    device_mesh.DeviceMesh,
)
# One line for each part of cpu/: the substitution that upstream cannot do without.
EXPECTED = {
    torch: "tensor empty zeros ones full arange rand randn randint randperm linspace eye as_tensor asarray "
    "empty_like zeros_like ones_like full_like rand_like randn_like randint_like empty_strided tril_indices "
    "triu_indices scalar_tensor logspace sparse_coo_tensor Generator compile",
    torch.Tensor: "to cuda type is_cuda new_empty new_zeros new_ones new_full new_tensor pin_memory record_stream",
    torch.nn.Module: "to",
    torch.UntypedStorage: "cuda",
    torch.autocast: "__init__",
    torch.accelerator: "is_available",
    torch.jit: "script",
    torch.utils._device.DeviceContext: "__init__",
    torch.autograd.profiler.profile: "__init__",
    torch.cuda: "is_available device_count current_device set_device synchronize Stream Event current_stream "
    "default_stream set_stream default_generators is_initialized _lazy_init is_current_stream_capturing "
    "empty_cache mem_get_info reset_peak_memory_stats device_memory_used FloatTensor HalfTensor "
    "BFloat16Tensor CUDAGraph graph MemPool ExternalStream temperature power_draw utilization clock_rate "
    "cudart",
    torch.cuda.random: "device_count current_device is_initialized _lazy_init",
    torch.cuda.memory: "memory_stats_as_nested_dict _snapshot _record_memory_history MemPool use_mem_pool",
    torch.cuda.nvtx: "range_push range_pop",
    dist: "init_process_group new_group barrier all_gather reduce_scatter all_to_all isend",
    c10d: "init_process_group new_group barrier all_gather reduce_scatter all_to_all isend",
    device_mesh: "new_group",
    device_mesh.DeviceMesh: "__init__",
}


def picture() -> dict:
    return {(owner, name): value for owner in OWNERS for name, value in vars(owner).items()}


def differences(before: dict, after: dict) -> set:
    missing = object()
    return {key for key in before | after if before.get(key, missing) is not after.get(key, missing)}


@pytest.fixture(scope="module")
def installed_changes():
    before = picture()
    registry = list(torch.serialization._package_registry)
    device = CpuDevice()
    device.install()
    try:
        changed = differences(before, picture())
        registered = len(torch.serialization._package_registry) - len(registry)
    finally:
        device.revert()
    return changed, registered, differences(before, picture()), registry


@pytest.mark.parametrize(
    "owner, name",
    [pytest.param(o, n, id=f"{o.__name__}.{n}") for o, ns in EXPECTED.items() for n in ns.split()],
)
def test_is_substituted(installed_changes, owner, name):
    assert (owner, name) in installed_changes[0]


def test_everything_is_reverted_to_identity(installed_changes):
    _, registered, left_over, registry = installed_changes
    assert left_over == set()
    assert registered == 1
    assert torch.serialization._package_registry == registry


def test_install_is_idempotent_across_objects():
    before = picture()
    CpuDevice().install()
    once = picture()
    CpuDevice().install()
    assert differences(once, picture()) == set()
    CpuDevice().revert()
    assert differences(before, picture()) == set()


def test_a_failing_part_leaves_nothing_behind(monkeypatch):
    def fail(substitutions):
        raise RuntimeError("no")

    before = picture()
    monkeypatch.setattr(cpu.unsupported, "install", fail)
    with pytest.raises(RuntimeError, match="no"):
        CpuDevice().install()
    assert differences(before, picture()) == set()
    monkeypatch.undo()
    CpuDevice().install()  # not thought to be installed already
    assert torch.cuda.is_available()
    CpuDevice().revert()


def test_revert_without_install_does_nothing():
    before = picture()
    CpuDevice().revert()
    assert differences(before, picture()) == set()


def test_a_factory_that_was_replaced_when_pytorch_made_its_list():
    """As transformers does with linspace while it loads a model on the meta device."""
    listed, linspace = torch.utils._device._device_constructors, torch.linspace
    listed.cache_clear()
    torch.linspace = lambda *args, **kwargs: linspace(*args, **kwargs)
    listed()
    torch.linspace = linspace
    device = CpuDevice()
    device.install()
    try:
        assert torch.linspace(0, 1, 3, device="cuda").device.type == "cpu"
    finally:
        device.revert()
        listed.cache_clear()
