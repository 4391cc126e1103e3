"""Packed weights: the products of the plain ones, and when there are none."""

from types import SimpleNamespace

import psutil
import pytest
import torch

from ascend_patch.generation import packed
from ascend_patch.generation.packed import ROWS, Packed
from tests.unit_tests.ops.checks import TOLERANCES, relative_error

pytestmark = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor's oneDNN has no bfloat16"
)


def weight(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).bfloat16()


@pytest.mark.parametrize("rows", [1, 3, ROWS, ROWS + 1])
@pytest.mark.parametrize(("n", "k"), [(48, 32), (17, 5)], ids=["even", "odd"])
@torch.no_grad()
def test_linear(rows, n, k):
    matrix, x = torch.nn.Parameter(weight(n, k)), weight(rows, 1, k)
    found = packed.linear(x, matrix, Packed(matrix))
    assert found.shape == (rows, 1, n) and found.dtype == torch.bfloat16
    assert relative_error(found, x.double() @ matrix.double().t()) <= TOLERANCES[torch.bfloat16]
    assert torch.equal(packed.linear(x, matrix, None), torch.nn.functional.linear(x, matrix))


@pytest.mark.parametrize("counts", [[1, 0, 2], [0, 0, ROWS], [ROWS, 1, ROWS], [0, 0, 0], [1, ROWS + 1, 0]], ids=str)
@torch.no_grad()
def test_grouped_linear(counts):
    experts, x = torch.nn.Parameter(weight(3, 24, 16)), weight(sum(counts), 16)
    found = packed.grouped_linear(x, experts, [Packed(expert) for expert in experts], counts)
    expected = packed.grouped_linear(x, experts, None, counts)
    assert found.shape == expected.shape == (sum(counts), 24)
    assert relative_error(found, expected.double()) <= TOLERANCES[torch.bfloat16]


def test_other_weights_are_packed_again():
    matrix, x = torch.nn.Parameter(weight(8, 8)), weight(1, 8)
    product = Packed(matrix)
    with torch.no_grad():
        matrix.copy_(weight(8, 8))
        assert torch.equal(product(x), torch.nn.functional.linear(x, matrix))


def test_what_is_not_packed(monkeypatch):
    assert packed.is_packable([weight(8, 8)])
    assert not packed.is_packable([weight(8, 8), torch.randn(8, 8)])
    assert not packed.is_packable([weight(8, 8).to("meta")])
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2 * 2 * 64 - 1))
    assert not packed.is_packable([weight(8, 8)])
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2 * 2 * 64))
    assert packed.is_packable([weight(8, 8)])


class Output(torch.nn.Module):
    """What :func:`packed.pack_output_layer` is given, with a record of the calls of its own ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight(24, 16))
        self.calls = 0

    def forward(self, input_, weight=None, runtime_gather_output=None):
        self.calls += 1
        return torch.nn.functional.linear(input_, self.weight if weight is None else weight), None


def test_output_layer():
    layer, few, many = Output(), weight(2, 1, 16), weight(ROWS + 1, 1, 16)
    packed.pack_output_layer(layer)
    with torch.no_grad():
        logits, bias = layer(few, weight=None, runtime_gather_output=True)
        assert bias is None and layer.calls == 0
        assert torch.equal(logits, torch.nn.functional.linear(few, layer.weight))
        layer(many)
        other = weight(24, 16)
        assert torch.equal(layer(few, weight=other)[0], torch.nn.functional.linear(few, other))
    layer(few)[0].sum().backward()
    assert layer.calls == 3 and layer.weight.grad is not None
