"""Device arguments of factories, methods, files and contexts."""

import io
import threading

import pytest
import torch

pytestmark = pytest.mark.usefixtures("cpu_device")

CUDA_NAMES = ["cuda", "cuda:0", "cuda:3", torch.device("cuda"), torch.device("cuda", 1), 0, 2]
OTHER_TENSOR = torch.zeros(2, dtype=torch.float64)

FACTORIES = {
    "arange": lambda **k: torch.arange(3, **k),
    "as_tensor": lambda **k: torch.as_tensor([1.0], **k),
    "asarray": lambda **k: torch.asarray([1.0], **k),
    "empty": lambda **k: torch.empty(2, **k),
    "empty_like": lambda **k: torch.empty_like(OTHER_TENSOR, **k),
    "empty_strided": lambda **k: torch.empty_strided((2, 2), (2, 1), **k),
    "eye": lambda **k: torch.eye(2, **k),
    "full": lambda **k: torch.full((2,), 1.0, **k),
    "full_like": lambda **k: torch.full_like(OTHER_TENSOR, 1.0, **k),
    "linspace": lambda **k: torch.linspace(0, 1, 3, **k),
    "logspace": lambda **k: torch.logspace(0, 1, 3, **k),
    "ones": lambda **k: torch.ones(2, **k),
    "ones_like": lambda **k: torch.ones_like(OTHER_TENSOR, **k),
    "rand": lambda **k: torch.rand(2, **k),
    "rand_like": lambda **k: torch.rand_like(OTHER_TENSOR, **k),
    "randint": lambda **k: torch.randint(5, (2,), **k),
    "randint_like": lambda **k: torch.randint_like(OTHER_TENSOR, 5, **k),
    "randn": lambda **k: torch.randn(2, **k),
    "randn_like": lambda **k: torch.randn_like(OTHER_TENSOR, **k),
    "randperm": lambda **k: torch.randperm(3, **k),
    "scalar_tensor": lambda **k: torch.scalar_tensor(1.0, **k),
    "sparse_coo_tensor": lambda **k: torch.sparse_coo_tensor([[0]], [1.0], (2,), **k),
    "tensor": lambda **k: torch.tensor([1.0], **k),
    "tril_indices": lambda **k: torch.tril_indices(2, 2, **k),
    "triu_indices": lambda **k: torch.triu_indices(2, 2, **k),
    "zeros": lambda **k: torch.zeros(2, **k),
    "zeros_like": lambda **k: torch.zeros_like(OTHER_TENSOR, **k),
    "new_empty": lambda **k: OTHER_TENSOR.new_empty(2, **k),
    "new_empty_strided": lambda **k: OTHER_TENSOR.new_empty_strided((2,), (1,), **k),
    "new_full": lambda **k: OTHER_TENSOR.new_full((2,), 1.0, **k),
    "new_ones": lambda **k: OTHER_TENSOR.new_ones(2, **k),
    "new_tensor": lambda **k: OTHER_TENSOR.new_tensor([1.0], **k),
    "new_zeros": lambda **k: OTHER_TENSOR.new_zeros(2, **k),
}


@pytest.mark.parametrize("device", CUDA_NAMES, ids=repr)
@pytest.mark.parametrize("name", FACTORIES)
def test_factory_makes_a_host_tensor(name, device):
    assert FACTORIES[name](device=device).device.type == "cpu"


@pytest.mark.parametrize("name", [n for n in FACTORIES if n not in ("asarray", "as_tensor", "sparse_coo_tensor")])
def test_factory_leaves_other_devices_alone(name):
    assert FACTORIES[name]().device.type == "cpu"
    assert FACTORIES[name](device=None).device.type == "cpu"
    if name != "new_tensor":  # PyTorch itself cannot copy data to meta there
        assert FACTORIES[name](device="meta").device.type == "meta"


def test_factory_keeps_its_other_arguments():
    tensor = torch.zeros(2, 3, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    assert (tensor.shape, tensor.dtype, tensor.requires_grad) == ((2, 3), torch.bfloat16, True)


def test_every_factory_pytorch_knows_is_translated():
    from torch.utils._device import _device_constructors

    top_level = {f for f in _device_constructors() if vars(torch).get(f.__name__) is f}
    assert top_level == set(), "still the original functions"


def test_as_tensor_by_position():
    assert torch.as_tensor([1], torch.float32, "cuda").dtype is torch.float32
    array = torch.arange(3)
    assert torch.as_tensor(array, device="cuda").data_ptr() == array.data_ptr()


@pytest.mark.parametrize("method", ["zeros", "empty", "rand"])
def test_pinned_memory_is_plain_memory(method):
    assert not getattr(torch, method)(2, pin_memory=True).is_pinned()


@pytest.mark.parametrize("device", CUDA_NAMES, ids=repr)
@pytest.mark.parametrize(
    "call",
    [
        lambda t, d: t.to(d),
        lambda t, d: t.to(device=d),
        lambda t, d: t.to(d, non_blocking=True),
        lambda t, d: t.to(device=d, non_blocking=True),
        lambda t, d: t.cuda(),
        lambda t, d: t.cuda(d),
        lambda t, d: t.cuda(device=d, non_blocking=True),
    ],
)
def test_moving_returns_the_same_tensor(call, device):
    tensor = torch.randn(3)
    assert call(tensor, device) is tensor


@pytest.mark.parametrize("device", CUDA_NAMES, ids=repr)
def test_to_converts_and_copies(device):
    tensor = torch.randn(3)
    assert tensor.to(device, torch.bfloat16).dtype is torch.bfloat16
    assert tensor.to(device, dtype=torch.bfloat16, non_blocking=True).dtype is torch.bfloat16
    assert tensor.to(device=device, dtype=torch.float64).dtype is torch.float64
    copy = tensor.to(device, copy=True)
    assert copy is not tensor and torch.equal(copy, tensor)


def test_to_without_a_device():
    tensor = torch.randn(3)
    assert tensor.to(torch.int64).dtype is torch.int64
    assert tensor.to(OTHER_TENSOR).dtype is torch.float64
    assert tensor.to(tensor=OTHER_TENSOR).dtype is torch.float64
    assert tensor.to("meta").device.type == "meta"
    assert tensor.to(memory_format=torch.preserve_format) is tensor


def test_moving_a_meta_tensor_fails_as_on_a_gpu():
    with pytest.raises(NotImplementedError, match="meta tensor"):
        torch.empty(2, device="meta").cuda()


def test_cuda_changes_the_memory_format():
    tensor = torch.randn(2, 3, 4, 5)
    assert tensor.cuda(memory_format=torch.channels_last).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("device", CUDA_NAMES, ids=repr)
@pytest.mark.parametrize(
    "move", [lambda m, d: m.to(d), lambda m, d: m.to(device=d), lambda m, d: m.cuda(d), lambda m, d: m.cuda()]
)
def test_modules_stay(move, device):
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    weight = module[0].weight
    assert move(module, device) is module
    assert module[0].weight is weight
    assert module.to(device, torch.bfloat16)[0].weight.dtype is torch.bfloat16


@pytest.mark.parametrize("device", CUDA_NAMES, ids=repr)
def test_module_made_for_cuda(device):
    assert torch.nn.Linear(2, 3, device=device).weight.device.type == "cpu"
    assert torch.nn.Linear(2, 3, device="meta").to_empty(device=device).weight.device.type == "cpu"


@pytest.mark.parametrize(
    "dtype, name",
    [
        (torch.float32, "torch.cuda.FloatTensor"),
        (torch.float16, "torch.cuda.HalfTensor"),
        (torch.bfloat16, "torch.cuda.BFloat16Tensor"),
        (torch.int64, "torch.cuda.LongTensor"),
        (torch.bool, "torch.cuda.BoolTensor"),
    ],
)
def test_type_names(dtype, name):
    tensor = torch.zeros(2, dtype=dtype)
    assert tensor.type() == name
    assert torch.nn.Parameter(tensor, requires_grad=False).type() == name
    legacy = getattr(torch.cuda, name.rpartition(".")[2])
    assert isinstance(tensor, legacy)
    for target in (name, legacy, dtype):
        assert torch.zeros(2, dtype=torch.float64).type(target).dtype is dtype
    assert tensor.type() == torch.zeros(2, dtype=dtype, device="cuda").type()


def test_type_of_tensors_elsewhere():
    assert "cuda" not in torch.empty(2, device="meta").type()


def test_is_cuda():
    assert torch.zeros(1).is_cuda and torch.zeros(1).is_cpu
    assert not torch.zeros(1, device="meta").is_cuda


def test_legacy_constructor():
    assert torch.cuda.FloatTensor([1.0, 2.0]).tolist() == [1.0, 2.0]


def test_stream_and_pinning_methods():
    tensor = torch.zeros(2)
    assert tensor.record_stream(torch.cuda.Stream()) is None
    assert tensor.pin_memory() is tensor


def test_device_contexts(monkeypatch):
    # After set_default_device(None), torch.get_default_device() fails for the rest of the process (torch 2.9).
    monkeypatch.setattr(torch, "_GLOBAL_DEVICE_CONTEXT", threading.local())
    with torch.device("cuda"):
        assert torch.zeros(1).device.type == "cpu"
    with torch.device("meta"):
        assert torch.zeros(1).device.type == "meta"
        assert torch.zeros(1, device=torch.cuda.current_device()).device.type == "cpu"
    torch.set_default_device("cuda")
    try:
        assert torch.zeros(1).device.type == "cpu"
    finally:
        torch.set_default_device(None)


def test_autocast_acts():
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.bfloat16
    with torch.autocast(device_type="cuda", enabled=False):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32


def test_generator():
    generators = [
        torch.Generator(device="cuda"),
        torch.Generator(torch.cuda.current_device()),
        torch.Generator(),
    ]
    drawn = [torch.rand(3, generator=g.manual_seed(5), device="cuda") for g in generators]
    assert all(torch.equal(d, drawn[0]) for d in drawn)
    assert all(isinstance(g, torch.Generator) for g in [*generators, torch.default_generator])
    assert not isinstance(3, torch.Generator)


def saved(tensor: torch.Tensor) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save({"x": tensor}, buffer)
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize(
    "map_location",
    [
        None,
        "cpu",
        "cuda",
        "cuda:0",
        torch.device("cuda", 1),
        {"cpu": "cuda:0"},
        lambda storage, location: storage,
        lambda storage, location: storage.cuda(0),
    ],
)
@pytest.mark.parametrize("weights_only", [True, False])
def test_load(map_location, weights_only):
    tensor = torch.randn(5)
    loaded = torch.load(saved(tensor), map_location=map_location, weights_only=weights_only)["x"]
    assert loaded.device.type == "cpu"
    assert torch.equal(loaded, tensor)


def test_load_a_file_written_on_a_gpu(monkeypatch):
    tensor = torch.randn(5)
    # What a GPU writes differs in the location tag only.
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    buffer = saved(tensor)
    monkeypatch.undo()
    assert torch.equal(torch.load(buffer)["x"], tensor)


def test_files_written_here_need_no_gpu(monkeypatch):
    tags = []
    location_tag = torch.serialization.location_tag
    monkeypatch.setattr(
        torch.serialization, "location_tag", lambda storage: tags.append(location_tag(storage)) or tags[-1]
    )
    saved(torch.randn(5, device="cuda"))
    assert tags == ["cpu"]


def test_gradients_flow_through_cuda():
    weight = torch.randn(3, requires_grad=True)
    (weight.cuda().to("cuda", torch.float64) * 2).sum().backward()
    assert torch.equal(weight.grad, torch.full((3,), 2.0))
