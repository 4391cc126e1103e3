"""The limit: one step is one measurement of the rate of a large square matrix product."""

import argparse

import torch

from benchmarks.gate import Gate
from tools.train.gemm import gemm_rate

_NAMES = {"bf16": "bfloat16", "fp32": "float32"}


def main() -> None:
    """Measure until the gate closes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", choices=_NAMES, required=True)
    dtype = _NAMES[parser.parse_args().dtype]
    gate = Gate.on_standard_streams()
    rate = 0.0
    while True:
        gate.step(flops_per_second=rate)
        rate = gemm_rate("cpu", torch.get_num_threads(), dtype=dtype)


if __name__ == "__main__":
    main()
