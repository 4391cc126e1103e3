"""``--moe-grouped-gemm`` really groups: products dispatched in one iteration, with and without the patch."""

import json
import re
import sys
from pathlib import Path

from tests.system_tests import count_gemms
from tests.system_tests.launcher import environment, run, single_process
from tests.system_tests.mixtral import TINY, tiny


def products(**variables: str) -> dict[str, int]:
    """Of one process, one micro batch, one iteration."""
    arguments = tiny(train_iters=1, global_batch_size=TINY["micro_batch_size"])
    script = str(Path(count_gemms.__file__))
    command = [sys.executable, "-m", "ascend_patch.run", script, *arguments]
    output = run(command, environment(**single_process(), **variables)).succeeded().output
    return json.loads(re.search(r"^products: (.*)$", output, re.MULTILINE).group(1))


def test_one_product_for_all_experts() -> None:
    grouped, looped = products(), products(ASCEND_PATCH_DISABLE="moe.grouped_gemm")
    passes = 3  # forward, gradient of the input, gradient of the weight
    expected = TINY["num_layers"] * 2 * passes  # of two linear layers each
    assert grouped["_grouped_mm"] == expected
    assert looped["_grouped_mm"] == 0
    assert looped["mm"] - grouped["mm"] == expected * TINY["num_experts"]
    assert {name: grouped[name] for name in ("addmm", "bmm", "baddbmm")} == {
        name: looped[name] for name in ("addmm", "bmm", "baddbmm")
    }
