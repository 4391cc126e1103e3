"""What the host no longer waits for: the same answers as upstream's, without asking the device."""

from types import SimpleNamespace

import pytest
import torch

from ascend_patch.features import host_waits


class Group:
    """A process group that only has a size."""

    def __init__(self, size: int) -> None:
        self._size = size

    def size(self) -> int:
        return self._size


def never(*args, **kwargs):
    pytest.fail("upstream's own function was asked")


@pytest.mark.parametrize("stat", [None, 0.25, 0.0, -1.5])
def test_a_statistic_of_one_process_is_what_it_is(stat):
    assert host_waits.reduce_max_stat(never)(stat, group=Group(1)) == stat


@pytest.mark.parametrize(("mine", "others", "expected"), [(None, -1.0, None), (None, 2.0, 2.0), (3.0, -1.0, 3.0)])
def test_a_statistic_of_several_processes_is_read_once(monkeypatch, mine, others, expected):
    reads = []
    item = torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "item", lambda self: reads.append(1) or item(self))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda t, op, group: t.clamp_(min=others))
    assert host_waits.reduce_max_stat(never)(mine, Group(2)) == expected
    assert len(reads) == 1


@pytest.mark.parametrize("success", [True, False])
def test_agreement(success):
    asked = []
    agreed = host_waits.logical_and(lambda input, group: asked.append(input) or "upstream's")
    assert agreed(success, group=Group(1)) is success
    assert agreed(success, group=Group(2)) == "upstream's"
    assert asked == [success]


@pytest.mark.parametrize(
    ("value", "expected"), [(True, True), (False, False), ([True, False], (True, False)), ([False], (False,))]
)
def test_any_of_one_process(monkeypatch, value, expected):
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    assert host_waits.reduce_any(never)(None, value) == expected
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert host_waits.reduce_any(lambda self, value: "upstream's")(None, value) == "upstream's"


def test_validation_passes_on_what_is_no_tensor_of_a_device():
    seen = []
    validate = host_waits.validate_result(lambda *args, **kwargs: seen.append((args, kwargs)))
    loss = torch.tensor(2.0)
    validate("machine", loss, torch.isnan, "a message", fatal=False)
    validate("machine", 2.0, abs, message="another")
    assert seen[0][0][1] is loss
    assert seen == [
        (("machine", loss, torch.isnan, "a message"), {"fatal": False}),
        (("machine", 2.0, abs), seen[1][1]),
    ]


@pytest.mark.npu
def test_validation_copies_a_result_once(npu_device, monkeypatch):
    """For both checks, until the result is written to."""
    rejected = []
    validate = host_waits.validate_result(lambda self, result, rejection: rejected.append(bool(rejection(result))))
    copies = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: copies.append(1) or cpu(self))
    norm = torch.tensor(float("inf"), device=npu_device)
    validate(None, norm, torch.isnan)
    validate(None, norm, torch.isinf)
    norm.fill_(float("nan"))
    validate(None, norm, torch.isnan)
    assert rejected == [False, True, True]
    assert len(copies) == 2


def test_loss_scale():
    scale = host_waits.get_loss_scale(lambda self: self.grad_scaler.scale)
    assert scale(SimpleNamespace(grad_scaler=SimpleNamespace(scale=8.0))) == 8.0
    for optimizer in (SimpleNamespace(grad_scaler=None), SimpleNamespace()):
        assert scale(optimizer).item() == 1.0


@pytest.mark.npu
def test_the_loss_scale_multiplies_a_loss_of_the_device(npu_device):
    loss = torch.tensor(3.0, device=npu_device, requires_grad=True)
    scaled = host_waits.get_loss_scale(never)(SimpleNamespace()) * loss
    scaled.backward()
    assert scaled.device == npu_device and scaled.item() == 3.0
    assert loss.grad.item() == 1.0
