"""The order of layouts, and what is refused."""

import pytest

from ascend_patch.checkpoint import layout as checkpoint_layout
from ascend_patch.checkpoint.shape import ModelShape
from ascend_patch.planning import memory
from ascend_patch.planning.errors import PlanningError
from ascend_patch.planning.layout import Training, candidates
from ascend_patch.planning.models import MODELS
from ascend_patch.planning.plan import GIB, USABLE, Plan, plan


@pytest.mark.parametrize("name", MODELS)
def test_layouts_are_such_that_upstream_takes(name: str) -> None:
    model = MODELS[name]
    shape = ModelShape(
        model.layers, model.hidden, model.ffn, model.heads, model.groups, model.head_dim, model.vocab,
        num_experts=model.experts, topk=model.topk,
    )  # fmt: skip
    found = list(candidates(Training(model, 32768, 256), 64))
    assert found and len(found) == len(set(found))
    for layout in found:
        assert layout.devices == 64 == layout.edp * layout.etp * layout.ep * layout.pp
        checkpoint_layout.Layout(layout.tp, layout.pp, layout.ep, layout.etp, layout.vpp).check(shape)
        assert 256 % (layout.dp * layout.micro) == 0


def test_what_fits_is_in_order() -> None:
    training = Training(MODELS["8x7b"], 4096, 1024)
    found = plan(training, 32, 64 * GIB)
    assert [one.cost for one in found] == sorted(one.cost for one in found)
    assert max(one.memory.total for one in found) <= USABLE * 64 * GIB
    assert len(found) < len(list(candidates(training, 32)))


def test_no_other_rank_needs_more() -> None:
    training = Training(MODELS["8x22b"], 4096, 1024)
    for layout in list(candidates(training, 128))[::17]:
        totals = [memory.memory(training, layout, stage).total for stage in range(layout.pp)]
        assert Plan(training, layout).memory.total == max(totals)


def test_too_little_memory_says_what_would_do() -> None:
    training = Training(MODELS["8x7b"], 4096, 1024)
    with pytest.raises(
        PlanningError, match="The smallest, TP4 EP4 ETP1 recompute, needs (.*) GiB: devices of (.*) GiB would"
    ) as error:
        plan(training, 4, 64 * GIB)
    enough = float(str(error.value).split("devices of ")[-1].split(" GiB")[0])
    assert plan(training, 4, round((enough + 0.1) * GIB))
    with pytest.raises(PlanningError):
        plan(training, 4, round((enough - 0.1) * GIB))


@pytest.mark.parametrize(("devices", "batch"), [(13, 1024), (4096, 1)])
def test_devices_that_no_layout_has_are_refused(devices: int, batch: int) -> None:
    with pytest.raises(PlanningError, match=f"No layout of Mixtral 8x7B has {devices} devices with {batch} samples"):
        plan(Training(MODELS["8x7b"], 4096, batch), devices, 64 * GIB)
