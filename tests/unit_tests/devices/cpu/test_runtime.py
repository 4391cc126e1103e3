"""torch.cuda: availability, device choice, properties, random numbers."""

import pytest
import torch
import torch.utils.checkpoint

from ascend_patch.devices.cpu import CpuDevice, runtime
from ascend_patch.engine.errors import AscendPatchError


@pytest.fixture
def launched(monkeypatch):
    """Install the cpu device as the torchrun worker with the given variables would."""

    def install(**variables: str) -> None:
        for name in ("LOCAL_WORLD_SIZE", "LOCAL_RANK"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        CpuDevice().install()

    yield install
    CpuDevice().revert()


@pytest.mark.parametrize(
    "variables, count",
    [
        ({}, 1),
        ({"LOCAL_WORLD_SIZE": "8", "LOCAL_RANK": "3"}, 8),
        ({"LOCAL_RANK": "3"}, 4),  # mpirun wrappers set no LOCAL_WORLD_SIZE
    ],
)
def test_a_device_for_every_process(launched, variables, count):
    launched(**variables)
    assert torch.cuda.is_available() and torch.cuda.is_initialized()
    assert torch.cuda.device_count() == count
    assert len(torch.cuda.default_generators) == count
    torch.cuda.set_device(int(variables.get("LOCAL_RANK", 0)))
    assert torch.cuda.current_device() == int(variables.get("LOCAL_RANK", 0))


def test_choosing_the_device(launched):
    launched(LOCAL_WORLD_SIZE="4")
    assert torch.cuda.current_device() == 0
    for device, index in (
        (2, 2),
        ("cuda:1", 1),
        (torch.device("cuda", 3), 3),
        (torch.device("cuda"), 3),
        (-1, 3),
    ):
        torch.cuda.set_device(device)
        assert torch.cuda.current_device() == index
    with torch.cuda.device(1):
        assert torch.cuda.current_device() == 1
        with torch.cuda.device(torch.zeros(1).device):  # upstream: `with torch.cuda.device(tensor.device)`
            assert torch.cuda.current_device() == 1
        with torch.cuda.device(None), torch.cuda.device("cuda"):
            assert torch.cuda.current_device() == 1
    assert torch.cuda.current_device() == 3
    assert torch.device("cuda", torch.cuda.current_device()).index == 3


def test_no_such_device(launched):
    launched(LOCAL_WORLD_SIZE="2")
    with pytest.raises(AscendPatchError, match=r"set_device\(2\) .* shows 2 device\(s\).*torchrun"):
        torch.cuda.set_device(2)


def test_properties(cpu_device):
    properties = torch.cuda.get_device_properties(torch.device("cuda:0"))
    assert isinstance(properties.major, int)
    assert torch.cuda.get_device_capability() == (properties.major, properties.minor) == (8, 0)
    assert torch.cuda.get_device_capability(torch.zeros(1).device) == (8, 0)
    assert properties.total_memory == torch.cuda.mem_get_info()[1] > 2**28
    assert properties.multi_processor_count >= 1
    assert "CPU" in torch.cuda.get_device_name() == properties.name
    assert torch.cuda.is_bf16_supported()
    assert not torch.cuda.is_current_stream_capturing()
    assert torch.cuda.synchronize() is None and torch.cuda.synchronize("cuda:0") is None


def test_cuda_random_numbers_are_those_of_the_host(cpu_device):
    torch.cuda.manual_seed(7)
    drawn = torch.rand(3, device="cuda")
    torch.manual_seed(7)
    assert torch.equal(torch.rand(3), drawn)
    torch.cuda.manual_seed_all(7)
    assert torch.equal(torch.rand(3), drawn)
    assert torch.cuda.initial_seed() == 7


@pytest.mark.parametrize(
    "get, set_",
    [
        (lambda: torch.cuda.get_rng_state(), lambda s: torch.cuda.set_rng_state(s)),
        (lambda: torch.cuda.get_rng_state("cuda:0"), lambda s: torch.cuda.set_rng_state(s, device=0)),
        (lambda: torch.cuda.random.get_rng_state(), lambda s: torch.cuda.random.set_rng_state(s)),
        (lambda: torch.cuda.get_rng_state_all(), lambda s: torch.cuda.set_rng_state_all(s)),
        (
            lambda: torch.cuda.default_generators[0].get_state(),
            lambda s: torch.cuda.default_generators[0].set_state(s),
        ),
    ],
)
def test_random_state_is_restored(cpu_device, get, set_):
    state = get()
    drawn = torch.rand(3)
    assert not torch.equal(torch.rand(3), drawn)
    set_(state)
    assert torch.equal(torch.rand(3), drawn)


def test_no_accelerator_beside_cuda(cpu_device):
    assert not torch.accelerator.is_available()


def test_lazy_calls_run_at_once(cpu_device):
    """tensor_parallel.random sets its state through torch.cuda._lazy_call."""
    calls = []
    torch.cuda._lazy_init()
    torch.cuda._lazy_call(lambda: calls.append(1))
    assert calls == [1]


def test_fork_rng_and_checkpointing_replay_dropout(cpu_device):
    with torch.random.fork_rng():
        drawn = torch.rand(2)
    assert torch.equal(torch.rand(2), drawn)

    x = torch.ones(1000, requires_grad=True)
    for use_reentrant in (True, False):
        y = torch.utils.checkpoint.checkpoint(torch.nn.functional.dropout, x, use_reentrant=use_reentrant)
        (gradient,) = torch.autograd.grad(y.sum(), x) if not use_reentrant else (_reentrant_gradient(x, y),)
        assert torch.equal(gradient, y.detach())  # for x = 1 both are the mask, scaled


def _reentrant_gradient(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x.grad = None
    y.sum().backward()
    return x.grad


def test_processes_on_this_machine(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "5")
    assert runtime.processes_on_this_machine() == 6
