"""What the tests of overlapped communication ask of a run: bytes by group, and the calls of an operator."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from tests.system_tests import count_bytes
from tests.system_tests.launcher import Run, train
from tests.system_tests.megatron_server import Server
from tests.system_tests.mixtral import tiny


def counted(server: Server, group: str, processes: int = 2, **flags: object) -> tuple[Run, int, int]:
    """The run, and of its first rank in ``group`` the calls of collectives that move tokens, and their bytes."""
    run = server.run(Path(count_bytes.__file__), tiny(**flags), processes).succeeded()
    sent = json.loads(re.search(r"^sent: (.*)$", run.output, re.MULTILINE).group(1))
    return run, *sent[group]


def reported(
    folder: Path,
    operator: str,
    *,
    processes: int = 2,
    disabled: str = "",
    device: str = "cpu",
    megatron: Path | None = None,
    variables: Mapping[str, str] | None = None,
    timeout: float = 240.0,
    **flags: object,
) -> tuple[Run, dict]:
    """The run, and the calls of the operator by function and variant."""
    report = folder / "report.json"
    own = {
        "ASCEND_PATCH_REPORT": str(report),
        "ASCEND_PATCH_DISABLE": disabled,
        "ASCEND_PATCH_DEVICE": device,
        "ASCEND_SIM_REPORT_DIRECTORY": str(folder),
    }
    own |= variables or {}
    run = train(tiny(**flags), processes=processes, variables=own, megatron=megatron, timeout=timeout).succeeded()
    return run, json.loads(report.read_text())["operators"][operator]["calls"]
