"""``killed_conversions.py COUNT ARGUMENTS…``: convert, and be killed at ``COUNT`` random moments; then to the end.

``ARGUMENTS`` are those of ``tools/checkpoint/util.py``. A conversion that is not killed shows how long one takes; its
result is removed. After each kill ``SAVE_DIR`` must not be there; what is there instead is copied to
``SAVE_DIR.killed/NUMBER`` for the test to look at. Processes are forked, so that no kill hits the imports.
"""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from tools.checkpoint import util


def start(arguments: list[str]) -> int:
    """A conversion in a process of its own; returns its id."""
    process = os.fork()
    if not process:
        os._exit(util.main(arguments))
    return process


def end(process: int) -> int:
    """Wait for a process; returns its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main() -> None:
    """See the module's docstring."""
    import ascend_patch.checkpoint.convert  # noqa: F401  (here, and not in every child)

    count, arguments = int(sys.argv[1]), sys.argv[2:]
    result = Path(arguments[arguments.index("--save-dir") + 1])
    began = time.monotonic()
    if code := end(start(arguments)):
        sys.exit(code)
    whole = time.monotonic() - began
    shutil.rmtree(result)
    seed = random.randrange(2**32)
    print(f"random.seed({seed}), {whole:.2f} s")
    random.seed(seed)
    kills = 0
    while kills < count:
        process = start(arguments)
        time.sleep(random.uniform(0, whole))
        os.kill(process, signal.SIGKILL)
        if end(process) == 0:  # it was faster
            shutil.rmtree(result)
            continue
        if result.exists():
            sys.exit(f"{result} is there after a kill")
        unfinished = result.with_name(f"{result.name}.unfinished")
        if unfinished.exists():
            shutil.copytree(unfinished, result.with_name(f"{result.name}.killed") / str(kills))
        kills += 1
    sys.exit(end(start(arguments)))


if __name__ == "__main__":
    main()
