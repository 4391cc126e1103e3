"""choose(): which device, and what it says when there is none."""

import logging
import subprocess
import sys

import pytest
import torch

from ascend_patch import devices
from ascend_patch.devices import choose
from ascend_patch.devices.base import Unavailable
from ascend_patch.devices.cpu import CpuDevice
from ascend_patch.devices.cuda import CudaDevice
from ascend_patch.devices.npu import NpuDevice
from ascend_patch.engine.errors import AscendPatchError

NO_NPU = Unavailable("there is no NPU", "Buy one.")
BROKEN_NPU = Unavailable("CANN is missing", "Install it.", broken=True)
NO_GPU = Unavailable("there is no GPU", "Buy one.")


def pretend(monkeypatch, npu: Unavailable | None, cuda: Unavailable | None) -> None:
    monkeypatch.setattr(NpuDevice, "unavailable", classmethod(lambda cls: npu))
    monkeypatch.setattr(CudaDevice, "unavailable", classmethod(lambda cls: cuda))


@pytest.mark.parametrize(
    "npu, cuda, expected",
    [(None, None, "npu"), (NO_NPU, None, "cuda"), (None, NO_GPU, "npu"), (NO_NPU, NO_GPU, "cpu")],
)
@pytest.mark.parametrize("requested", [None, ""])
def test_takes_the_best_there_is(monkeypatch, npu, cuda, expected, requested):
    pretend(monkeypatch, npu, cuda)
    assert choose(requested).name == expected


@pytest.mark.parametrize("name", ["npu", "cuda", "cpu"])
def test_takes_what_was_asked_for(monkeypatch, name):
    pretend(monkeypatch, None, None)
    assert choose(name).name == name


def test_what_was_asked_for_is_never_exchanged(monkeypatch):
    pretend(monkeypatch, NO_NPU, None)
    with pytest.raises(AscendPatchError, match=r"'npu' was requested, but there is no NPU\. Buy one\."):
        choose("npu")


def test_unknown_name_lists_the_allowed_ones():
    with pytest.raises(AscendPatchError, match=r"'tpu' is unknown\. Allowed are npu, cuda, cpu\."):
        choose("tpu")


def test_a_broken_device_is_passed_over_aloud(monkeypatch, caplog):
    pretend(monkeypatch, BROKEN_NPU, NO_GPU)
    with caplog.at_level(logging.WARNING, logger=devices.__name__):
        assert choose(None).name == "cpu"
    assert [record.getMessage() for record in caplog.records] == [
        "The npu is passed over: CANN is missing. Install it."
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_names_the_next_step():
    with pytest.raises(AscendPatchError, match=r"'cuda' was requested, but .*(no GPU|without CUDA).*\. \w+"):
        choose("cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_installed_cpu_device_is_not_taken_for_a_gpu(cpu_device):
    assert torch.cuda.is_available()
    assert CudaDevice.unavailable() is not None


def test_describe_cpu():
    assert CpuDevice().describe() == "cpu (torch.cuda translated to host memory, nccl to gloo)"


def test_cuda_changes_nothing():
    before = dict(vars(torch.cuda))
    CudaDevice().install()
    assert all(vars(torch.cuda)[name] is value for name, value in before.items())
    CudaDevice().revert()


# In a process of its own: here, other tests may have imported what this one wants to see untouched.
NOTHING_CHANGES = """
import sys
import torch, torch.distributed, torch.cuda.memory, torch.cuda.random, torch.cuda.streams, torch.serialization

def picture():
    owners = (torch, torch.Tensor, torch.nn.Module, torch.cuda, torch.cuda.memory, torch.cuda.random,
              torch.cuda.streams, torch.cuda.nvtx, torch.distributed, torch.distributed.distributed_c10d,
              torch.UntypedStorage, torch.jit, torch.autocast)
    values = {(owner.__name__, name): value for owner in owners for name, value in vars(owner).items()}
    return values, list(torch.serialization._package_registry)

values, registry = picture()
import ascend_patch.devices
ascend_patch.devices.choose("cpu")
ascend_patch.devices.choose(None)
new_values, new_registry = picture()
changed = [key for key in values if new_values.get(key, None) is not values[key]]
added = [key for key in new_values if key not in values]
assert not changed and not added, (changed, added)
assert registry == new_registry
assert not torch.cuda.is_initialized()
assert not [name for name in sys.modules if name.split(".")[0] in ("megatron", "torch_npu")]
"""


def test_importing_and_choosing_change_nothing():
    result = subprocess.run([sys.executable, "-c", NOTHING_CHANGES], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
