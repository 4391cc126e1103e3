"""The npu device on a machine without NPU: its messages, and the additions to torch_npu's translation."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch

from ascend_patch.devices import choose, npu
from ascend_patch.devices.npu import NpuDevice
from ascend_patch.devices.substitute import Substitutions
from ascend_patch.engine.errors import AscendPatchError

# What `import torch_npu` says where CANN is missing (torch_npu 2.9.1).
NO_CANN = "libhccl.so: cannot open shared object file: No such file or directory"


@pytest.fixture
def torch_npu_module(tmp_path, monkeypatch):
    """Make `import torch_npu` run the given source text."""

    def write(source: str) -> None:
        (tmp_path / "torch_npu.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "torch_npu", raising=False)

    yield write
    sys.modules.pop("torch_npu", None)


@pytest.mark.skipif(importlib.util.find_spec("torch_npu") is not None, reason="torch_npu is installed")
def test_torch_npu_is_not_installed():
    with pytest.raises(AscendPatchError, match=r"torch_npu is not installed .* needs torch_npu .*ascend-sim run"):
        choose("npu")


def test_cann_is_missing(torch_npu_module):
    torch_npu_module(f"raise ImportError({NO_CANN!r})")
    problem = NpuDevice.unavailable()
    assert problem is not None and problem.broken
    assert NO_CANN in problem.reason
    assert "set_env.sh" in problem.next_step


def test_torch_npu_does_not_fit_torch(torch_npu_module):
    torch_npu_module("raise RuntimeError('version mismatch')")
    problem = NpuDevice.unavailable()
    assert problem is not None and problem.broken
    assert "RuntimeError: version mismatch" in problem.reason
    assert f"torch_npu=={torch.__version__.partition('+')[0]}'" in problem.next_step


def test_no_device(torch_npu_module):
    torch_npu_module("class npu:\n    device_count = staticmethod(lambda: 0)\n")
    problem = NpuDevice.unavailable()
    assert problem is not None and problem.broken
    assert "npu-smi info" in problem.next_step


def test_available(torch_npu_module):
    torch_npu_module("class npu:\n    device_count = staticmethod(lambda: 8)\n")
    assert NpuDevice.unavailable() is None


def test_additions_to_transfer_to_npu(monkeypatch):
    generators = (object(),)
    # What transfer_to_npu leaves behind: torch.cuda answers with an NPU's properties, which have no .major.
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: SimpleNamespace(name="Ascend910B"))
    before = {name: vars(torch.cuda).get(name) for name in ("default_generators", "get_device_capability")}
    substitutions = Substitutions()
    runtime = SimpleNamespace(default_generators=())
    runtime.init = lambda: setattr(runtime, "default_generators", generators)  # there are none before that
    npu._complete(substitutions, SimpleNamespace(npu=runtime))
    try:
        assert len(torch.cuda.default_generators) == 1 and torch.cuda.default_generators[0] is generators[0]
        assert torch.cuda.get_device_properties().name == "Ascend910B"
        assert torch.cuda.get_device_properties().major == 8
        assert torch.cuda.get_device_capability() >= (8, 0)
        assert torch.zeros(1).type() == "torch.FloatTensor"  # a host tensor beside an NPU stays one
        assert torch.zeros(1).type("torch.DoubleTensor").dtype is torch.float64
    finally:
        substitutions.revert()
    assert all(vars(torch.cuda)[name] is value for name, value in before.items())
    assert "type" not in vars(torch.Tensor)


def test_type_names_are_those_of_cuda():
    type_ = npu._type(lambda tensor, dtype=None: "torch.npu.HalfTensor" if dtype is None else dtype)
    assert type_(object()) == "torch.cuda.HalfTensor"
    assert type_(object(), "torch.cuda.FloatTensor") == "torch.npu.FloatTensor"
    assert type_(object(), torch.float32) is torch.float32
