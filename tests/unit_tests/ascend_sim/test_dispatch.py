"""aten on the simulated device: results, views, in-place operators, random numbers, memory and errors."""

import gc

import pytest
import torch

pytestmark = pytest.mark.simulator


def test_views_share_memory(npu_device):
    base = torch.zeros(4, 6, device=npu_device)
    base.view(6, 4).t()[1:3, ::2].add_(1)
    expected = torch.zeros(4, 6)
    expected.view(6, 4).t()[1:3, ::2].add_(1)
    assert torch.equal(base.cpu(), expected)


def test_view_of_another_dtype(npu_device):
    numbers = torch.randn(3, 4, device=npu_device)
    assert torch.equal(numbers.view(torch.int32).cpu(), numbers.cpu().view(torch.int32))


def test_out_argument_is_resized(npu_device):
    out = torch.empty(0, device=npu_device)
    a, b = torch.randn(3, 5, device=npu_device), torch.randn(5, 2, device=npu_device)
    assert torch.mm(a, b, out=out) is out
    assert torch.equal(out.cpu(), a.cpu() @ b.cpu())


def test_results_do_not_alias_host_memory(npu_device):
    """A result is a device tensor with memory of its own, that the allocator counts."""
    before = torch.npu.memory_allocated()
    product = torch.ones(1024, 1024, device=npu_device) * 2
    assert 0 <= torch.npu.memory_allocated() - before - 4 * 1024 * 1024 <= 1024  # the allocator rounds up
    assert product.device == npu_device


def test_a_copy_to_the_host_returns_what_it_filled(npu_device):
    host = torch.empty(4)
    assert host.copy_(torch.arange(4.0, device=npu_device)) is host
    assert host.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("run", [torch.add, lambda x, y: torch.ops.npu.npu_swiglu(x)], ids=["aten", "npu"])
def test_nothing_is_kept_after_a_call(npu_device, run):
    gc.collect()
    gc.disable()
    try:
        before = torch.npu.memory_allocated()
        x = torch.randn(64, 64, device=npu_device)
        run(x, x)
        del x
        assert torch.npu.memory_allocated() == before
    finally:
        gc.enable()


def test_gradients(npu_device):
    x = torch.randn(7, 5, dtype=torch.float64)
    weight = torch.randn(3, 5, dtype=torch.float64)
    gradients = []
    for device in ("cpu", npu_device):
        leaf = x.clone().to(device).requires_grad_()
        torch.nn.functional.linear(leaf, weight.to(device)).relu().square().sum().backward()
        gradients.append(leaf.grad.cpu())
    assert torch.equal(*gradients)


def test_random_numbers_follow_the_npu_generator(npu_device):
    torch.npu.manual_seed(5)
    state = torch.npu.get_rng_state()
    first, second = torch.randn(8, device=npu_device).cpu(), torch.randn(8, device=npu_device).cpu()
    assert not torch.equal(first, second)
    torch.npu.set_rng_state(state)
    assert torch.equal(torch.randn(8, device=npu_device).cpu(), first)


def test_the_cpu_generator_is_left_alone(npu_device):
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    torch.randn(100, device=npu_device)
    assert torch.equal(torch.randn(4), expected)


def test_out_of_memory_is_torch_npu_s_own_error(npu_device):
    torch.npu.empty_cache()
    free, total = torch.npu.mem_get_info()
    with pytest.raises(torch.OutOfMemoryError, match=f"NPU out of memory.*{total / 2**30:.2f} GiB total capacity"):
        torch.empty(total + 1, dtype=torch.uint8, device=npu_device)
    assert torch.npu.mem_get_info() == (free, total)


def test_an_operator_without_a_kernel_is_named(npu_device):
    with pytest.raises(NotImplementedError, match="npu::npu_gelu"):
        torch.ops.npu.npu_gelu(torch.ones(2, 2, device=npu_device), approximate="none")


def test_events_measure_time(npu_device):
    start, end = (torch.npu.Event(enable_timing=True) for _ in range(2))
    start.record()
    end.record()
    end.synchronize()
    assert start.elapsed_time(end) >= 0
