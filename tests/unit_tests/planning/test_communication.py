"""Messages: what the ring algorithms send, and what was counted once."""

import pytest

from ascend_patch.planning.communication import Traffic, sent, traffic
from ascend_patch.planning.layout import Layout, Training
from ascend_patch.planning.models import MODELS
from tests.unit_tests.planning.small import LAYOUTS, TRAINING


@pytest.mark.parametrize(
    ("operation", "bytes_sent"),
    [("all_gather", 300), ("reduce_scatter", 75), ("all_to_all", 75), ("all_reduce", 150), ("send", 100)],
)
def test_rings(operation: str, bytes_sent: int) -> None:
    """Of 100 bytes of each of four ranks."""
    assert Traffic("DP", operation, 4, 100, 4).sent == bytes_sent


def test_alone_nothing_is_sent() -> None:
    assert traffic(TRAINING, LAYOUTS["one"], 0) == []


COUNTED = {
    ("tp2", 0): {
        ("TP", "all_gather"): 3948544 + 4210688,
        ("TP", "reduce_scatter"): 5242880 + 8421376,
        ("TP", "all_reduce"): 12800,
    },
    ("ep2", 0): {("EP", "all_to_all"): 8421376, ("DP", "reduce_scatter"): 1822208, ("DP", "all_gather"): 455552},
    ("pp2", 0): {("PP", "send"): 524288},
    ("pp2", 1): {("PP", "send"): 524288},
    ("vpp2", 0): {("PP", "send"): 1572864},
    ("cp2", 0): {("CP", "send"): 6291456, ("DP", "reduce_scatter"): 8113664, ("DP", "all_gather"): 2028416},
}
"""Contributed bytes that ``tests/system_tests/test_planning.py`` counted once; EP for equal numbers of tokens."""


@pytest.mark.parametrize(("name", "stage"), COUNTED)
def test_messages_are_those_that_were_counted(name: str, stage: int) -> None:
    found: dict[tuple[str, str], int] = {}
    for one in traffic(TRAINING, LAYOUTS[name], stage):
        found[one.kind, one.operation] = found.get((one.kind, one.operation), 0) + one.contributed
    assert found == COUNTED[name, stage]


def test_more_micro_batches_send_the_same() -> None:
    """Per step, of activations: it is the tokens that count."""
    training = Training(MODELS["8x7b"], 4096, 128)
    for kind in ("PP", "EP", "CP"):
        one, four = (sent(traffic(training, Layout(2, pp=2, ep=2, cp=2, micro=micro), 0), kind) for micro in (1, 4))
        assert one == four > 0


def test_without_the_distributed_optimizer_more_is_sent() -> None:
    plain, distributed = (
        sent(traffic(TRAINING, Layout(4, distributed_optimizer=chosen), 0), "DP") for chosen in (False, True)
    )
    assert plain == pytest.approx(distributed * 4 / 3, rel=1e-6)
