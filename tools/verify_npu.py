"""``python -m tools.verify_npu``: checks this machine's NPU and writes a report.

Runs the tests marked ``npu``: every operator, forward and backward, against a float64 reference; and ten iterations of
a small Mixtral on the NPU and on the host, from the same weights. Under ``ascend-sim run`` the same checks run on the
simulated device, and the report says so.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ascend_patch import __version__
from ascend_patch.engine.report import write_text
from ascend_sim.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
SELECTION = "npu and not slow and not checkouts"
_FAILED = ("failure", "error")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks.

    Returns:
        0 if all passed, 1 if one failed, 2 if there is no NPU.
    """
    parser = argparse.ArgumentParser(prog="tools.verify_npu", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "verify_npu", help="folder of the report")
    parser.add_argument("tests", nargs="*", default=["tests"], help="only these (default: all that need an NPU)")
    arguments = parser.parse_args(argv)
    try:
        facts = machine()
    except RuntimeError as error:
        print(f"verify_npu: {error}", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = arguments.out / "tests.xml"
    results.unlink(missing_ok=True)
    command = ["-m", "pytest", "-m", SELECTION, "-o", "junit_family=xunit1", "--junitxml", str(results)]
    code = subprocess.run([sys.executable, *command, *arguments.tests], cwd=ROOT).returncode
    if not results.is_file():
        print("verify_npu: the tests did not start; pytest's message is above", file=sys.stderr)
        return 1
    tests = read_results(results)
    write_text(arguments.out / "report.json", json.dumps({"machine": facts, "tests": tests}, indent=2) + "\n")
    write_text(arguments.out / "report.md", markdown(facts, tests))
    passed = code == 0 and any(test["outcome"] == "passed" for test in tests)
    print(f"verify_npu: {'all checks passed' if passed else 'FAILED'}; {arguments.out / 'report.md'}")
    return 0 if passed else 1


def machine() -> dict[str, Any]:
    """What the checks run on.

    Raises:
        RuntimeError: PyTorch sees no NPU.
    """
    import torch

    if not hasattr(torch, "npu") or torch.npu.device_count() == 0:
        raise RuntimeError(
            "PyTorch sees no NPU. `ascend-patch doctor` says what is missing; without the hardware, "
            "`ascend-sim run -- python -m tools.verify_npu` checks the same on a simulated device."
        )
    names = ("torch", "torch_npu", "megatron-core")
    return {
        "simulated": Settings.from_environment() is not None,
        "device": torch.npu.get_device_name(0),
        "devices": torch.npu.device_count(),
        "CANN": os.environ.get("ASCEND_HOME_PATH", "not set"),
        "ascend_patch": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
    }


def read_results(path: Path) -> list[dict[str, Any]]:
    """The tests of a JUnit file: name, seconds, outcome, message of a failure, recorded figures."""
    tests = []
    for case in ElementTree.parse(path).iter("testcase"):
        failures = [child for child in case if child.tag in _FAILED]
        skipped = case.find("skipped") is not None
        tests.append(
            {
                "name": f"{case.get('classname')}::{case.get('name')}",
                "seconds": float(case.get("time", "0")),
                "outcome": "failed" if failures else "skipped" if skipped else "passed",
                "message": "\n".join(child.get("message", "") for child in failures),
                "figures": {p.get("name", ""): p.get("value", "") for p in case.iter("property")},
            }
        )
    return tests


def markdown(facts: Mapping[str, Any], tests: Sequence[Mapping[str, Any]]) -> str:
    """The report for people."""
    where = "the simulated device, not an NPU" if facts["simulated"] else "an NPU"
    lines = [f"# Verification on {where}", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in facts.items()]
    lines += ["", "## Tests", "", "| | passed | failed | skipped |", "| --- | --- | --- | --- |"]
    modules = dict.fromkeys(test["name"].split("::")[0] for test in tests)
    for module in modules:
        outcomes = [test["outcome"] for test in tests if test["name"].split("::")[0] == module]
        counts = [module, *(str(outcomes.count(outcome)) for outcome in ("passed", "failed", "skipped"))]
        lines.append(f"| {' | '.join(counts)} |")
    for test in tests:
        if test["figures"]:
            lines += ["", f"## {test['name'].split('::')[1]}", ""]
            lines += [f"- {name}: {value}" for name, value in test["figures"].items()]
    for test in tests:
        if test["outcome"] == "failed":
            lines += ["", f"## Failed: {test['name']}", "", "```", test["message"], "```"]
    return "\n".join(lines) + "\n"


def _commit() -> str:
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return "unknown"


if __name__ == "__main__":
    sys.exit(main())
