"""The table of kernels: binding of arguments, errors, the generated page, and the way under torch's dispatcher."""

from pathlib import Path

import pytest
import torch

import ascend_sim.kernels
from ascend_sim.errors import ConstraintError, NotModelled, require
from ascend_sim.kernels.registry import (
    KERNELS,
    Kernel,
    assumptions_markdown,
    bind,
    kernel,
    missing_operators,
    register,
)

SCHEMA = torch._C.parse_schema(
    "npu::example(Tensor x, int k=2, *, Tensor? mask=None, float scale=1., bool sync=False, str mode='') -> Tensor"
)
PAGE = Path(ascend_sim.kernels.__file__).parents[2] / "docs" / "simulator_assumptions.md"


def example(x, k, scale):
    return x * k * scale


ENTRY = Kernel("npu::example", example, "a document", ignores=frozenset({"sync"}))


def test_defaults_are_filled_in():
    assert bind(ENTRY, SCHEMA, (1,), {}) == {"x": 1, "k": 2, "scale": 1.0}
    assert bind(ENTRY, SCHEMA, (1, 3), {"scale": 2.0, "sync": True}) == {"x": 1, "k": 3, "scale": 2.0}


@pytest.mark.parametrize("given", [{"mask": torch.ones(2)}, {"mode": "other"}])
def test_arguments_that_are_not_modelled(given):
    (name,) = given
    with pytest.raises(NotModelled, match=f"^npu::example: argument {name}=.*not modelled"):
        bind(ENTRY, SCHEMA, (1,), given)


def test_defaults_may_be_given():
    assert bind(ENTRY, SCHEMA, (1,), {"mask": None, "mode": ""}) == {"x": 1, "k": 2, "scale": 1.0}


@pytest.fixture
def table(monkeypatch):
    monkeypatch.setattr("ascend_sim.kernels.registry.KERNELS", found := {})
    return found


def test_errors_carry_the_operators_name(table):
    @kernel("first", "aten::second", source="a document")
    def function(x):
        require(x > 0, f"x is {x}, needed: positive")
        return x

    assert set(table) == {"npu::first", "aten::second"}
    assert function(1) == 1
    with pytest.raises(ConstraintError, match="^npu::first: x is 0, needed: positive$") as error:
        function(0)
    assert error.value.operator == "npu::first"
    assert isinstance(error.value, RuntimeError)


def test_the_innermost_operator_is_named(table):
    @kernel("inner", source="a document")
    def inner():
        raise NotModelled("reason")

    @kernel("outer", source="a document")
    def outer():
        inner()

    with pytest.raises(NotModelled, match="^npu::inner: reason$"):
        outer()


def test_an_operator_has_one_kernel(table):
    kernel("twice", source="a document")(example)
    with pytest.raises(ValueError, match="npu::twice has two kernels"):
        kernel("twice", source="a document")(example)


@pytest.mark.parametrize("entry", KERNELS.values(), ids=KERNELS)
def test_every_kernel_is_documented(entry):
    assert entry.source
    assert entry.function.__doc__


def test_the_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == assumptions_markdown(), (
        "run `ascend-sim assumptions > docs/simulator_assumptions.md`"
    )


@pytest.mark.simulator
@pytest.mark.parametrize("entry", KERNELS.values(), ids=KERNELS)
def test_kernels_fit_the_schemas(npu_device, entry):
    """Every argument that a kernel names exists, and every argument without a default is taken or ignored."""
    namespace, _, operator = entry.name.partition("::")
    base, _, overload = operator.partition(".")
    schema = torch._C._get_schema(f"{namespace}::{base}", overload)
    arguments = {argument.name: argument for argument in schema.arguments}
    assert entry.accepts | entry.ignores <= set(arguments)
    for name, argument in arguments.items():
        assert argument.has_default_value() or name in entry.accepts | entry.ignores, name


@pytest.mark.simulator
def test_operators_without_a_kernel(npu_device):
    missing = missing_operators()
    assert "npu::npu_incre_flash_attention" in missing
    assert not set(missing) & set(KERNELS)
    with pytest.raises(NotImplementedError, match="npu::npu_gelu"):
        torch.ops.npu.npu_gelu(torch.ones(2, device=npu_device))


@pytest.mark.simulator
def test_tensors_on_the_host_are_refused(torch_npu, npu_device):
    x, weight = torch.randn(4, 3, device=npu_device), torch.randn(2, 3, 5, device=npu_device)
    with pytest.raises(ConstraintError, match="npu_grouped_matmul: all tensors .*group_list on cpu"):
        torch_npu.npu_grouped_matmul([x], [weight], group_list=torch.tensor([1, 4]), split_item=3, group_type=0)
    with pytest.raises(ConstraintError, match="npu_rms_norm: all tensors .*gamma on cpu"):
        torch_npu.npu_rms_norm(x, torch.ones(3))
    with pytest.raises(ConstraintError, match="npu_moe_token_permute: all tensors .*indices on cpu"):
        torch_npu.npu_moe_token_permute(x, torch.zeros(4, 1).long())


@pytest.mark.simulator
def test_tensors_on_several_devices_are_refused(torch_npu, npu_device):
    assert torch.npu.device_count() > 1, "run with `ascend-sim run --devices 2` or more"
    with pytest.raises(ConstraintError, match="input on npu:0, gamma on npu:1"):
        torch_npu.npu_rms_norm(torch.ones(2, 3, device=npu_device), torch.ones(3, device="npu:1"))


@pytest.fixture
def launches(npu_device):
    """Launches of kernels while the test runs; the simulator's own counter is put back."""
    found = []
    register(torch.ops.ascend_sim.host_alias, lambda *launch: found.append(launch))
    yield found
    register()


@pytest.mark.simulator
def test_a_call_is_one_launch_with_its_bytes(torch_npu, npu_device, launches):
    x = torch.randn(6, 8, device=npu_device)
    torch_npu.npu_swiglu(x)
    assert launches == [("npu::npu_swiglu", 6 * 8 * 4, 6 * 4 * 4)]


@pytest.mark.simulator
@pytest.mark.parametrize("layout", ["BSH", "TND"])
def test_of_a_compressed_mask_only_a_corner_is_read(torch_npu, npu_device, launches, layout):
    query = torch.randn(2, 8, 64, device=npu_device)
    packed = {"actual_seq_qlen": [8, 16], "actual_seq_kvlen": [8, 16]} if layout == "TND" else {}
    query = query.view(16, 4, 16) if packed else query
    mask = torch.ones(2048, 2048, dtype=torch.bool, device=npu_device).triu(1)
    torch_npu.npu_fusion_attention(query, query, query, 4, layout, atten_mask=mask, sparse_mode=2, **packed)
    output, rows = 2 * 8 * 64 * 4, 2 * 4 * 8 * 8 * 4
    assert launches == [("npu::npu_fusion_attention", 3 * output + 8 * 8, output + 2 * rows)]


@pytest.mark.simulator
@pytest.mark.parametrize("layout", ["SBH", "BNSD", "TND"])
def test_shapes_only_counts_the_same_and_computes_nothing(torch_npu, npu_device, launches, layout):
    """Of attention; other kernels compute."""
    packed = {"actual_seq_qlen": [3, 8], "actual_seq_kvlen": [3, 8]} if layout == "TND" else {}
    shape = {"SBH": (8, 2, 64), "BNSD": (2, 4, 8, 16), "TND": (8, 4, 16)}[layout]
    query, key, value = (torch.randn(shape, device=npu_device, dtype=torch.bfloat16) for _ in range(3))

    def run():
        launches.clear()
        torch.npu.reset_peak_memory_stats()
        before = torch.npu.memory_allocated()
        leaf = query.clone().requires_grad_()
        results = torch_npu.npu_fusion_attention(leaf, key, value, 4, layout, **packed)
        results[0].sum().backward()
        tensors = [t for t in (*results, leaf.grad) if isinstance(t, torch.Tensor)]
        shapes = [(t.shape, t.dtype, t.device) for t in tensors]
        numbers = [r for r in results if not isinstance(r, torch.Tensor)]
        return results[0], shapes, numbers, list(launches), torch.npu.max_memory_allocated() - before

    output, *computed = run()
    register(torch.ops.ascend_sim.host_alias, lambda *launch: launches.append(launch), shapes_only=True)
    left_out, *counted = run()
    assert counted == computed
    assert torch.count_nonzero(output)
    assert not torch.count_nonzero(left_out)
    assert torch.count_nonzero(torch_npu.npu_swiglu(query))


@pytest.mark.simulator
def test_results_are_contiguous_tensors_of_the_device(torch_npu, npu_device):
    tokens = torch.randn(4, 3, device=npu_device)
    rows, indices = torch_npu.npu_moe_token_permute(tokens, torch.tensor([[1], [0], [1], [0]], device=npu_device))
    for result in (rows, indices):
        assert result.device == npu_device
        assert result.is_contiguous()
    with torch.inference_mode():
        assert torch_npu.npu_rms_norm(tokens, torch.ones(3, device=npu_device))[0].device == npu_device
