"""``python -m ascend_sim``: the console script ``ascend-sim``."""

import sys

from ascend_sim.cli import main

if __name__ == "__main__":
    sys.exit(main())
