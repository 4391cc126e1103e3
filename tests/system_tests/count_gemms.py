"""Run the bundled entry and print how often each matrix product was dispatched. For test_grouped_gemm.py."""

import json
import runpy
from collections import Counter

from torch.utils._python_dispatch import TorchDispatchMode

from ascend_patch.run import BUNDLED

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_grouped_mm")


class CountProducts(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter(dict.fromkeys(PRODUCTS, 0))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if name in PRODUCTS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


if __name__ == "__main__":
    with CountProducts() as mode:
        runpy.run_path(str(BUNDLED), run_name="__main__")
    print("products:", json.dumps(mode.counts))
