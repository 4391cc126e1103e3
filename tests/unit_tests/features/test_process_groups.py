"""Options of process groups on an NPU, and what a rank says of its host."""

import pytest
import torch

from ascend_patch import absent
from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.engine.patch import Environment
from ascend_patch.features.process_groups import PATCHES, get_nccl_options, initialize_distributed


def test_what_hccl_has(monkeypatch):
    class Options:
        is_high_priority_stream = False

    group = type("ProcessGroupHCCL", (), {"Options": Options})
    monkeypatch.setattr(torch.distributed, "ProcessGroupNCCL", group, raising=False)
    configured = {"ep": {"is_high_priority_stream": True}, "dp": {}}
    assert get_nccl_options("ep", configured).is_high_priority_stream is True
    assert get_nccl_options("dp", configured).is_high_priority_stream is False
    assert get_nccl_options("tp", configured) is None


def test_what_hccl_does_not_have():
    with pytest.raises(AscendPatchError, match=r"sets max_ctas, min_ctas of the process group 'ep'.*HCCL_BUFFSIZE"):
        get_nccl_options("ep", {"ep": {"min_ctas": 1, "max_ctas": 32, "is_high_priority_stream": True}})


def test_only_for_npu():
    (patch,) = (patch for patch in PATCHES if patch.id == "process_groups.hccl_options")
    assert patch.when(Environment("npu", "0.19.2")) is None
    assert patch.when(Environment("cpu", "0.19.2")) == "the device is cpu, not npu"


def test_the_host_is_left_once_there_are_groups(monkeypatch):
    done = []
    monkeypatch.setattr(absent, "leave_host", lambda: done.append("host"))
    initialize = initialize_distributed(lambda *args, **kwargs: done.append((args, kwargs)) or "result")
    assert initialize(1, 2, store=None) == "result"
    assert done == [((1, 2), {"store": None}), "host"]


@pytest.mark.npu
def test_options_of_torch_npu(npu_device, monkeypatch):
    """The real ones take what is set."""
    import torch_npu

    hccl = torch_npu._C._distributed_c10d.ProcessGroupHCCL
    monkeypatch.setattr(torch.distributed, "ProcessGroupNCCL", hccl, raising=False)
    options = get_nccl_options("ep", {"ep": {"is_high_priority_stream": True}})
    assert isinstance(options, hccl.Options)
    assert options.is_high_priority_stream
