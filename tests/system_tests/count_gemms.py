"""Run the bundled entry and print how often operator grouped_gemm was called. For test_grouped_gemm.py."""

import json
import runpy

from ascend_patch.ops import registry
from ascend_patch.run import BUNDLED

if __name__ == "__main__":
    runpy.run_path(str(BUNDLED), run_name="__main__")
    print("calls:", json.dumps(registry.report()["grouped_gemm"]["calls"]))
