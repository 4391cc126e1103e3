"""Casts, matrix products and dropout that torch_npu puts under ordinary calls."""

import pytest
import torch

from ascend_sim.kernels import plumbing
from tests.unit_tests.ascend_sim.kernels.checks import BFLOAT16, assert_close, check_on_device, not_modelled, refuses

MATRICES = pytest.mark.parametrize(
    ("left", "right"),
    [
        ((3, 4), (4, 5)),
        ((4,), (4,)),
        ((4,), (4, 5)),
        ((3, 4), (4,)),
        ((2, 3, 4), (4, 5)),
        ((2, 3, 4), (4,)),
        ((4,), (2, 4, 5)),
        ((2, 1, 3, 4), (6, 4, 5)),
        ((3, 4), (2, 4, 5)),
    ],
)


@MATRICES
def test_matmul_backward(left, right):
    a, b = torch.randn(left), torch.randn(right)
    leaves = [a.double().requires_grad_(), b.double().requires_grad_()]
    product = leaves[0] @ leaves[1]
    gradient = torch.randn(product.shape)
    product.backward(gradient.double())
    assert_close(plumbing.matmul_backward(gradient, a, b, [True, True]), [leaf.grad for leaf in leaves])
    assert plumbing.matmul_backward(gradient, a, b, [False, False]) == (None, None)


@pytest.mark.simulator
@MATRICES
def test_matmul_on_device(npu_device, left, right):
    check_on_device(torch.matmul, torch.matmul, [torch.randn(left), torch.randn(right)], npu_device)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_gather_backward(dim):
    x, index = torch.randn(4, 3, 5), torch.randint(0, 3, (3, 2, 5))
    leaf = x.double().requires_grad_()
    gathered = leaf.gather(dim, index)
    gradient = torch.randn(gathered.shape)
    gathered.backward(gradient.double())
    assert_close(plumbing.npu_gather_backward(gradient, [4, 3, 5], dim, index, False), leaf.grad)
    with not_modelled("npu_gather_backward", "sparse_grad=True"):
        plumbing.npu_gather_backward(gradient, [4, 3, 5], dim, index, True)


def test_linear():
    x, weight, bias, gradient = torch.randn(2, 3, 4), torch.randn(5, 4), torch.randn(5), torch.randn(2, 3, 5)
    leaves = [x.double().requires_grad_(), weight.double().requires_grad_()]
    expected = leaves[0] @ leaves[1].t()
    expected.backward(gradient.double())
    assert_close(plumbing.npu_linear(x, weight, bias), expected + bias.double())
    assert_close(plumbing.npu_linear_backward(gradient, x, weight), [leaf.grad for leaf in leaves])
    with refuses("npu_linear", "weight has 1 dimensions"):
        plumbing.npu_linear(x, weight[0], None)


@pytest.mark.simulator
def test_linear_on_device(torch_npu, npu_device):
    check_on_device(
        torch_npu.npu_linear,
        lambda x, weight, bias: x @ weight.t() + bias,
        [torch.randn(7, 4), torch.randn(5, 4), torch.randn(5)],
        npu_device,
    )


@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
def test_dropout(dtype):
    x = torch.rand(50, 40).add(1).to(dtype)
    dropped, mask = plumbing.npu_dropout(x, 0.25)
    assert 0.65 < float(mask.float().mean()) < 0.85
    expected = x.double() * mask / 0.75
    assert_close(dropped, expected)
    assert_close(plumbing.npu_dropout_backward(x, mask, 0.25), expected)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropout_of_all_and_nothing(p):
    x = torch.randn(6)
    assert torch.equal(plumbing.npu_dropout(x, p)[0], x * (1 - p))


def test_dropout_constraints():
    with refuses("_npu_dropout", "p is 1.5, allowed: 0 to 1"):
        plumbing.npu_dropout(torch.randn(3), 1.5)
    with refuses("npu_dropout_backward", "mask is bool, allowed: uint8"):
        plumbing.npu_dropout_backward(torch.randn(3), torch.ones(3).bool(), 0.5)


@pytest.mark.simulator
def test_dropout_follows_the_npu_generator(torch_npu, npu_device):
    x = torch.ones(64, device=npu_device, requires_grad=True)
    state = torch.npu.get_rng_state()
    first, _ = torch_npu._npu_dropout(x, 0.5)
    second, _ = torch_npu._npu_dropout(x, 0.5)
    torch.npu.set_rng_state(state)
    again, _ = torch_npu._npu_dropout(x, 0.5)
    assert not torch.equal(first.cpu(), second.cpu())
    assert torch.equal(first.cpu(), again.cpu())
    (gradient,) = torch.autograd.grad(first.sum(), x)
    assert torch.equal(gradient.cpu(), first.detach().cpu())


def test_casts():
    x = torch.randn(3)
    assert torch.equal(plumbing.npu_format_cast(x, 2), x)
    assert plumbing.npu_dtype_cast(x, BFLOAT16).dtype == BFLOAT16
    assert plumbing.npu_dtype_cast_backward(x, BFLOAT16).dtype == BFLOAT16
    with not_modelled("_npu_format_cast", "acl_format=29"):
        plumbing.npu_format_cast(x, 29)


@pytest.mark.simulator
def test_casts_on_device(torch_npu, npu_device):
    image = torch.randn(2, 3, 4, 5)  # NCHW, so that ND is another format
    check_on_device(lambda x: torch_npu.npu_format_cast(x, 2), lambda x: x + 0, [image], npu_device)
    with not_modelled("_npu_format_cast", "acl_format=29"):
        torch_npu.npu_format_cast(image.to(npu_device), 29)
    check_on_device(lambda x: torch_npu._npu_dtype_cast(x, BFLOAT16), lambda x: x + 0, [torch.randn(4)], npu_device)
