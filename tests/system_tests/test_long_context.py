"""The script of 32768 tokens, at reduced width and length, as a user starts it."""

import pytest

from ascend_patch.runs.read import read
from ascend_patch.runs.run import LOSS
from benchmarks import long_context
from tests.system_tests import example, launcher

SCRIPT = launcher.ROOT / "examples" / "mixtral" / "pretrain_mixtral_8x7b_32k_ptd.sh"
LAYOUT = {"GPUS_PER_NODE": 4, "NNODES": 1, "TP": 2, "CP": 2, "EP": 2}
RECOMPUTED = ("--recompute-granularity", "full", "--recompute-method", "uniform", "--recompute-num-layers", "1")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["p2p", "a2a", "allgather"])
def test_it_trains(tmp_path, kind):
    variables = example.variables(tmp_path, CP_COMM_TYPE=kind, NUM_HEADS=8, NUM_QUERY_GROUPS=2, **LAYOUT)
    run = launcher.run(["bash", str(SCRIPT), *RECOMPUTED], variables, 240).succeeded()
    assert sorted(run.iterations) == list(range(1, example.LAST + 1))
    assert run.losses[example.LAST] < run.losses[1]


@pytest.mark.slow
@pytest.mark.npu
@pytest.mark.usefixtures("npu_device")
@pytest.mark.timeout(900)
def test_eight_simulated_ranks(tmp_path):
    """As ``python -m benchmarks.long_context`` does with 32768 tokens."""
    log, counted = long_context.train(tmp_path / "run", tokens=2048, iterations=3, kind="p2p")
    losses = [sample.value for sample in read(log).samples[LOSS]]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert "2,048 tokens, 8 ranks, TP2 CP4 EP4, p2p" in long_context.table(log, counted, 2048, "p2p")
