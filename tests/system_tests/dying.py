"""``dying.py SECONDS RANK SCRIPT ARGUMENTS…``: run a script as ``__main__``; after SECONDS, rank RANK kills itself.

0 seconds: it does not.
"""

import os
import runpy
import signal
import sys
import threading


def main() -> None:
    """The job; see the module's docstring."""
    seconds, rank = float(sys.argv.pop(1)), sys.argv.pop(1)
    if seconds and os.environ["RANK"] == rank:
        timer = threading.Timer(seconds, os.kill, [os.getpid(), signal.SIGKILL])
        timer.daemon = True
        timer.start()
    sys.argv.pop(0)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
