"""``--moe-grouped-gemm`` really groups: the operator is called once for all experts of a linear layer."""

import json
import re
import sys
from pathlib import Path

from tests.system_tests import count_gemms
from tests.system_tests.launcher import environment, run, single_process
from tests.system_tests.mixtral import TINY, tiny


def calls(**variables: str) -> dict[str, dict[str, int]]:
    """Of one process, one micro batch, one iteration."""
    arguments = tiny(train_iters=1, global_batch_size=TINY["micro_batch_size"])
    script = str(Path(count_gemms.__file__))
    command = [sys.executable, "-m", "ascend_patch.run", script, *arguments]
    output = run(command, environment(**single_process(), **variables)).succeeded().output
    return json.loads(re.search(r"^calls: (.*)$", output, re.MULTILINE).group(1))


def test_one_call_for_all_experts() -> None:
    assert calls()["grouped_gemm"] == {"torch": 2 * TINY["num_layers"]}
    assert "grouped_gemm" not in calls(ASCEND_PATCH_DISABLE="moe.grouped_gemm")
