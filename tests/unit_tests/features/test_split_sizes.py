"""The sizes that the alltoall dispatcher needs on the host, one copy of them all."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ascend_patch.features import split_sizes

POINTS = ("before_permutation_1", "before_ep_alltoall", "before_permutation_2", "before_finish")


def dispatcher(**sizes) -> SimpleNamespace:
    """What the wrappers look at of an upstream dispatcher."""
    made = SimpleNamespace(
        cuda_dtoh_point="before_permutation_1",
        cuda_dtoh_stream=None,
        drop_and_pad=False,
        num_local_experts=2,
        updates=[],
        **{"input_splits": None, "output_splits": None, "output_splits_tp": None, "num_out_tokens": 6, **sizes},
    )
    made._maybe_update_cuda_sync_point = made.updates.append
    return made


def upstream(self, point, tokens_per_expert=None):
    return point, tokens_per_expert


copies = split_sizes.maybe_dtoh_and_synchronize(upstream)


@pytest.mark.parametrize("point", POINTS)
def test_sizes_on_the_host_stay_as_they_are(point):
    sizes = {"input_splits": torch.tensor([1, 2]), "num_global_tokens_per_local_expert": torch.ones(2, 2)}
    found = dispatcher(**sizes)
    tokens_per_expert = torch.tensor([3, 4])
    result = copies(found, point, tokens_per_expert)
    assert result[0] == point and result[1] is tokens_per_expert
    assert all(getattr(found, name) is value for name, value in sizes.items())


@pytest.mark.npu
@pytest.mark.parametrize("tensor_parallel", [False, True])
def test_all_sizes_come_in_one_copy(npu_device, monkeypatch, tensor_parallel):
    monkeypatch.setattr(torch.cuda, "current_stream", torch.npu.current_stream)
    monkeypatch.setattr(torch.cuda, "stream", torch.npu.stream)
    numbers = {
        "input_splits": torch.randint(99, (2,)),
        "output_splits": torch.randint(99, (2,)),
        "output_splits_tp": torch.randint(99, (2,)) if tensor_parallel else None,
        "num_out_tokens": torch.tensor(77),
        "num_global_tokens_per_local_expert": torch.randint(99, (4, 2)),
    }
    found = dispatcher(**{name: None if t is None else t.to(npu_device) for name, t in numbers.items()})
    found.cuda_dtoh_stream = torch.npu.Stream()
    tokens_per_expert = torch.randint(99, (2,))
    on_device = tokens_per_expert.to(npu_device)

    assert copies(found, "before_finish", on_device)[1] is on_device  # not the point where upstream copies
    point, on_host = copies(found, found.cuda_dtoh_point, on_device)
    found.cuda_dtoh_stream.record_event().synchronize()
    assert point == found.cuda_dtoh_point
    assert torch.equal(on_host, tokens_per_expert) and on_host.device.type == "cpu"
    for name in ("num_out_tokens", "num_global_tokens_per_local_expert"):
        assert torch.equal(getattr(found, name), numbers[name])
    for name in ("input_splits", "output_splits"):
        value = getattr(found, name)
        assert isinstance(value, np.ndarray) and value.tolist() == numbers[name].tolist()
    if tensor_parallel:
        assert found.output_splits_tp.tolist() == numbers["output_splits_tp"].tolist()
    else:
        assert found.output_splits_tp is None


@pytest.mark.parametrize(
    ("num_local_experts", "drop_and_pad", "updates"),
    [(2, False, ["before_permutation_2"]), (1, False, []), (2, True, [])],
)
def test_the_host_waits_before_it_reorders_chunks(num_local_experts, drop_and_pad, updates):
    found = dispatcher()
    found.num_local_experts, found.drop_and_pad = num_local_experts, drop_and_pad
    preprocess = split_sizes.preprocess(lambda self, routing_map: routing_map.sum(0))
    assert preprocess(found, torch.ones(3, 2, dtype=torch.bool)).tolist() == [3, 3]
    assert found.updates == updates


def test_drop_and_pad_knows_its_sizes():
    """And need not have the attributes."""
    assert copies(SimpleNamespace(cuda_dtoh_point="before_finish", drop_and_pad=True), "before_finish")[1] is None


@pytest.mark.npu
def test_the_order_of_the_chunks_is_on_the_host(npu_device):
    def original(self):
        self.sort_input_by_local_experts = torch.tensor([0, 2, 1, 3], device=npu_device)
        self.restore_output_by_local_experts = torch.tensor([0, 2, 1, 3], device=npu_device)

    found = SimpleNamespace()
    split_sizes.initialize(original)(found)
    assert found.sort_input_by_local_experts.device.type == "cpu"
    assert found.restore_output_by_local_experts.tolist() == [0, 2, 1, 3]
