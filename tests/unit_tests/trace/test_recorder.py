"""What is recorded of a small model, in whatever order its micro-batches are computed."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ascend_patch.trace.recorder import Recorder
from ascend_patch.trace.store import BACKWARD, FORWARD, GRADIENT, Coordinates, Record
from tests.unit_tests.trace.runs import layout

HERE = Coordinates(0, 0, 0, 0, 0, 0, 0)
FIRST, SECOND = "decoder.layers.0", "decoder.layers.1"


class Layer(nn.Linear):
    """As upstream's, it has a module that returns its input, and returns a bias that is None."""

    def __init__(self, number: int) -> None:
        super().__init__(3, 3)
        self.layer_number = number
        self.input_layernorm = nn.Identity()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        x = super().forward(self.input_layernorm(x)).tanh()
        # make_viewless_tensor does this in a pass that is going to be repeated.
        return x if torch.is_grad_enabled() else x.requires_grad_(), None


class Model(nn.Module):
    def __init__(self, recompute: bool) -> None:
        super().__init__()
        self.decoder = nn.Module()
        self.decoder.layers = nn.ModuleList(Layer(number) for number in (1, 2))
        self.recompute = recompute

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.decoder.layers:
            x = checkpoint(layer, x, use_reentrant=True)[0] if self.recompute else layer(x)[0]
        return x


def run(recompute: bool, order: str) -> tuple[tuple[Record, ...], Model, list[torch.Tensor]]:
    """Train three micro-batches; ``order``: f and b, each the next forward or backward pass."""
    torch.manual_seed(5)
    model, inputs = Model(recompute), list(torch.randn(3, 4, 3, requires_grad=True).unbind())
    recorder = Recorder([model], layout(micro_batches=3, distributed_optimizer=False), HERE)
    forward, losses = iter(inputs), []
    with recorder.hooks():
        for letter in order:
            if letter == "f":
                losses.append(model(next(forward)).square().sum())
            else:
                losses.pop(0).backward()
    recorder.parameters(SimpleNamespace())
    assert not any(module._forward_hooks for module in model.modules())
    return recorder.records(2.0, 0.5), model, inputs


def key(record: Record) -> tuple:
    return record.direction, record.micro_batch, record.name, record.output, record.call


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("order", ["fbfbfb", "fffbbb", "ffbfbb"])
def test_every_output_and_its_gradient_once(recompute: bool, order: str) -> None:
    records, _, _ = run(recompute, order)
    expected = {
        (direction, batch, name, 0, 0)
        for direction in (FORWARD, BACKWARD)
        for batch in range(3)
        for name in (FIRST, SECOND, f"{FIRST}.input_layernorm", f"{SECOND}.input_layernorm", "model")
    } | {(GRADIENT, 0, f"{layer}.{name}", 0, 0) for layer in (FIRST, SECOND) for name in ("weight", "bias")}
    assert Counter(map(key, records)) == Counter(expected)
    reference, _, _ = run(False, "fbfbfb")
    assert {key(record): record.digest for record in records} == {key(record): record.digest for record in reference}


def test_the_digests_are_those_of_the_tensors() -> None:
    records, model, inputs = run(False, "ffbfbb")
    found = {key(record): record.digest for record in records}
    first, _ = model.decoder.layers[0](inputs[1])
    first.retain_grad()
    model.zero_grad()
    model.decoder.layers[1](first)[0].square().sum().backward()
    assert found[FORWARD, 1, FIRST, 0, 0].total == pytest.approx(first.sum().item(), rel=1e-5)
    assert found[FORWARD, 1, FIRST, 0, 0].norm == pytest.approx(first.norm().item(), rel=1e-5)
    assert found[BACKWARD, 1, FIRST, 0, 0].norm == pytest.approx(2 * first.grad.norm().item(), rel=1e-5)  # scaled
    assert found[BACKWARD, 1, FIRST, 0, 0].count == first.numel()


def test_in_order_of_execution() -> None:
    records, _, _ = run(False, "fbfbfb")
    names = [record.name for record in records if not record.name.endswith("norm")]
    assert names[:6] == [FIRST, SECOND, "model", SECOND, "model", FIRST]
    assert [record.name.rpartition(".")[0] for record in records[-4:]] == [SECOND, SECOND, FIRST, FIRST]


def test_a_repeated_pass_is_not_recorded() -> None:
    """Upstream computes a step again to look for faults."""
    recorder = Recorder([model := Model(False)], layout(micro_batches=1), HERE)
    with recorder.hooks():
        for _ in range(2):
            model(torch.randn(2, 3)).sum().backward()
    assert {record.micro_batch for record in recorder.records(1, 1)} == {0}
    assert len(recorder.records(1, 1)) == 9


class Distributed:
    """A distributed optimizer that has reduced some elements of the first layer's parameters to this rank."""

    def __init__(self, owned: dict[nn.Parameter, range]) -> None:
        self.model_param_gbuf_map = owned

    def _get_model_param_range_map(self, parameter: nn.Parameter) -> dict:
        owned = self.model_param_gbuf_map[parameter]
        return {"param": SimpleNamespace(start=owned.start, end=owned.stop)}


def test_what_a_distributed_optimizer_owns() -> None:
    model = Model(False)
    weight, bias = model.decoder.layers[0].parameters()
    for parameter in model.parameters():
        parameter.main_grad = torch.randn(parameter.shape)
    weight.tensor_model_parallel = True
    recorder = Recorder([model], layout(), HERE)
    chained = [Distributed({weight: range(2, 5)}), Distributed({bias: range(0, 3)})]
    recorder.parameters(SimpleNamespace(chained_optimizers=chained))
    whole, part = recorder.records(1, 1)
    assert (whole.name, whole.placement, whole.digest.count) == (f"{FIRST}.bias", ("dp",), 3)
    assert (part.name, part.placement, part.digest.count) == (f"{FIRST}.weight", ("tp", "dp"), 3)
    assert part.digest.total == pytest.approx(weight.main_grad.view(-1)[2:5].sum().item(), abs=1e-6)
