"""``tools/checkpoint/util.py``, and the most memory that it took: ``… convert REPORT ARGUMENTS…``.

The kernel keeps the figure for the process and for those that it started; the caller's own is not in it.
"""

import json
import resource
import runpy
import sys
from pathlib import Path

from benchmarks.worker import ROOT

COMMAND = ROOT / "tools" / "checkpoint" / "util.py"


def main() -> None:
    """Run the command, then write the report: bytes, ``peak`` of this process and ``children_peak`` of the largest."""
    report = Path(sys.argv[1])
    sys.argv = [str(COMMAND), *sys.argv[2:]]
    try:
        runpy.run_path(str(COMMAND), run_name="__main__")
    finally:
        children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        report.write_text(json.dumps({"peak": _high_water_mark(), "children_peak": children}))


def _high_water_mark() -> int:
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
