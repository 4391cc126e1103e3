"""PyTorch's own sample inputs, on the simulated device and on the CPU: same results, same gradients.

The sweep over all operators is slow; the operators below run always.
"""

import copy
import itertools

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_flatten, tree_map

pytestmark = pytest.mark.simulator

SAMPLES = 5
"""Sample inputs of each operator: the first ones are the plain ones."""

_ALWAYS = """
    add addmm all amax any arange argmax argsort baddbmm bincount bmm cat chunk clamp clone cos cumsum div einsum empty
    eq exp expand fill full gather index_add index_copy index_put index_select isnan linspace log_softmax masked_fill
    matmul max mean mm mul new_zeros nn.functional.cross_entropy nn.functional.embedding nn.functional.linear
    nn.functional.pad nn.functional.scaled_dot_product_attention nn.functional.silu nonzero norm ones_like outer permute
    pow repeat_interleave reshape roll rsqrt scatter scatter_add select sigmoid sin softmax sort split sqrt squeeze
    stack sub sum t tanh to topk transpose tril unbind unflatten unique unsqueeze view where zeros zeros_like
"""
ALWAYS = frozenset(_ALWAYS.split())

# What differs, and why that is no defect of the simulator. Anything else that fails is one.
_RANDOM = """
    bernoulli cauchy exponential geometric log_normal multinomial nn.functional.alpha_dropout nn.functional.dropout
    nn.functional.dropout2d nn.functional.dropout3d nn.functional.feature_alpha_dropout
    nn.functional.fractional_max_pool2d nn.functional.fractional_max_pool3d nn.functional.multi_head_attention_forward
    nn.functional.rrelu normal pca_lowrank
    rand_like randint randint_like randn randn_like svd_lowrank uniform nn.functional.scaled_dot_product_attention
"""
RANDOM = frozenset(_RANDOM.split())
UNINITIALIZED = frozenset(["empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"])
_FFT = "torch_npu differentiates it with operators that have no kernel here, and say so; training needs none"
_JITERATOR = "PyTorch has it on CUDA only"
_SPARSE = "sparse tensors have no simulated kernels, and say so"
_TRANSFORMS = "fft hfft hfft2 hfftn ifft ihfft ihfft2 ihfftn irfft irfft2 irfftn rfft rfft2 rfftn"
_JITERATED = "2inputs_2outputs 4inputs_with_extra_args binary binary_return_by_ref unary"
KNOWN = {
    **dict.fromkeys(("stft", "istft"), _FFT),
    **{f"fft.{name}": _FFT for name in _TRANSFORMS.split()},
    **{f"jiterator_{name}": _JITERATOR for name in _JITERATED.split()},
    "sparse.sampled_addmm": _SPARSE,
    "sparse.mm.reduce": _SPARSE,
    "tensor_split": "PyTorch wants its indices on the host, whatever the device",
    "nn.functional.binary_cross_entropy_with_logits": "torch_npu has no gradient for its weights",
    "linalg.eig": "this test's gradient depends on the phase of the eigenvectors, which is arbitrary",
    "as_strided.partial_views": "moving a view to the device moves what is seen of its memory, not all of it",
    "torch._scaled_mm": "assert_close compares 8 bit floats only bit by bit",
}


def _cases() -> list:
    cases = []
    for op in op_db:
        name = op.name + (f".{op.variant_test_name}" if op.variant_test_name else "")
        if not op.supported_dtypes("cpu"):  # for CUDA only
            continue
        marks = [] if op.name in ALWAYS and name not in KNOWN else [pytest.mark.slow]
        if name in KNOWN:
            marks.append(pytest.mark.xfail(reason=KNOWN[name], strict=True))
        cases.append(pytest.param(op, id=name, marks=marks))
    return cases


@pytest.mark.parametrize("op", _cases())
def test_operator(op, npu_device):
    dtypes = sorted(op.supported_dtypes("cpu"), key=str)
    dtype = torch.float32 if torch.float32 in dtypes else dtypes[0]
    differentiable = dtype in op.supported_backward_dtypes("cpu") and op.supports_autograd
    torch.manual_seed(0)
    samples = list(itertools.islice(op.sample_inputs("cpu", dtype, requires_grad=differentiable), SAMPLES))
    for sample in samples:
        expected, expected_gradients = evaluate(op, copy.deepcopy(sample), torch.device("cpu"), differentiable)
        found, gradients = evaluate(op, sample, npu_device, differentiable)
        exact = op.name not in RANDOM | UNINITIALIZED
        compare(found, expected, exact)
        compare(gradients, expected_gradients, exact)


def evaluate(op, sample, device, differentiable):
    """The tensors of the result, and the gradients of all inputs for a fixed gradient of the result; on the host."""
    moved = []

    def move(value):
        if isinstance(value, torch.Tensor):
            value = value.detach().to(device).requires_grad_(value.requires_grad)
            moved.append(value)
        elif isinstance(value, (torch.device, str)) and str(value) == "cpu":
            value = device
        return value

    arguments = tree_map(move, (sample.input, sample.args, sample.kwargs))
    torch.manual_seed(1)
    result = op(arguments[0], *arguments[1], **arguments[2])
    tensors = [value for value in tree_flatten(result)[0] if isinstance(value, torch.Tensor)]
    outputs = [tensor for tensor in tensors if tensor.requires_grad]
    leaves = [tensor for tensor in moved if tensor.requires_grad]
    gradients = []
    if differentiable and outputs and leaves:
        generator = torch.Generator().manual_seed(2)
        ones = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.dtype).to(device) for o in outputs]
        gradients = torch.autograd.grad(outputs, leaves, ones, allow_unused=True)
    on_host = [None if tensor is None else tensor.detach().cpu() for tensor in gradients]
    return [tensor.detach().cpu() for tensor in tensors], on_host


def compare(found, expected, exact):
    assert [None if t is None else t.shape for t in found] == [None if t is None else t.shape for t in expected]
    if exact:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
