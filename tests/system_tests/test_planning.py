"""The formulas of :mod:`ascend_patch.planning` against what small trainings on the simulated NPU took."""

import pytest

from ascend_patch.planning import memory
from ascend_patch.planning.communication import traffic
from ascend_patch.planning.layout import Layout, Training
from tests.system_tests.planned import count
from tests.unit_tests.planning.small import LAYOUTS, MISTRAL, TRAINING, flags

pytestmark = [pytest.mark.npu, pytest.mark.usefixtures("npu_device"), pytest.mark.slow, pytest.mark.timeout(900)]

TOLERANCE = 0.05
PADDING = 0.001
"""Upstream's buffers have gaps."""
DENSE = {"dense_tp2": Layout(2, tp=2, micro=2), "dense_pp2": Layout(2, pp=2)}
OPERATIONS = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all")
LOGGED = 64
"""Bytes of messages that only carry a few numbers: norms, losses."""


def messages(counted: dict[str, int], layout: Layout) -> dict[tuple[str, str], int]:
    """Kind and operation -> bytes that the rank contributed, to groups of several ranks."""
    groups = {
        "TENSOR_MODEL_PARALLEL_GROUP": ("TP", layout.tp),
        "EXPERT_TENSOR_PARALLEL_GROUP": ("TP", layout.etp),
        "PIPELINE_MODEL_PARALLEL_GROUP": ("PP", layout.pp),
        "default_pg": ("PP", layout.pp),  # takes the messages of one direction where a pipeline has two ranks
        "EXPERT_MODEL_PARALLEL_GROUP": ("EP", layout.ep),
        "DATA_PARALLEL_GROUP_WITH_CP": ("DP", layout.dp * layout.cp),
        "CONTEXT_PARALLEL_GROUP": ("CP", layout.cp),
        "EXPERT_DATA_PARALLEL_GROUP": ("DP", layout.edp),
    }
    found: dict[tuple[str, str], int] = {}
    for name, number in counted.items():
        group, operation = name.split()
        kind, size = groups.get(group, ("", 1))
        operation = next((known for known in OPERATIONS if operation.startswith(known)), "send")
        if size > 1 and number > LOGGED:
            found[kind, operation] = found.get((kind, operation), 0) + number
    return found


@pytest.mark.parametrize("name", [*LAYOUTS, *DENSE])
def test_a_step_takes_what_was_planned(name: str) -> None:
    layout = (LAYOUTS | DENSE)[name]
    training = Training(MISTRAL, TRAINING.sequence, TRAINING.batch) if name in DENSE else TRAINING
    ranks = count(layout.devices, **flags(training, layout))
    size = layout.devices // layout.pp
    for stage in range(layout.pp):
        found, planned = ranks[stage * size : (stage + 1) * size], memory.memory(training, layout, stage)
        number = memory.parameters(training.model, layout, stage)
        for rank in found:
            assert rank["dense"] + rank["experts"] == number.all
            for part in ("weights", "gradients", "optimizer"):
                assert rank[part] == pytest.approx(getattr(planned, part), rel=PADDING)
            assert rank["under_way"] == memory.under_way(training, layout, stage)
        # Some ranks' experts get more tokens than others'.
        peak = sum(rank["peak"] for rank in found) / size
        print(f"{name}, stage {stage}: peak {peak / planned.total:.4f} of what was planned")
        assert peak == pytest.approx(planned.total, rel=TOLERANCE)
        if layout.pp == 1 and not layout.recompute:  # elsewhere others come and go meanwhile
            kept = memory.activations(training, layout, stage) - memory._MASK
            assert sum(sum(rank["activations"]) / len(rank["activations"]) for rank in found) / size == pytest.approx(
                kept, rel=TOLERANCE
            )
        counted = [messages(rank["messages"], layout) for rank in found]
        sums: dict[tuple[str, str], int] = {}
        for one in traffic(training, layout, stage):
            sums[one.kind, one.operation] = sums.get((one.kind, one.operation), 0) + one.contributed
        means = {key: sum(rank[key] for rank in counted) / size for key in counted[0]}
        print({key: mean / sums[key] for key, mean in means.items()})
        assert means == pytest.approx(sums, rel=TOLERANCE)
