"""A simulated Ascend NPU: the unmodified torch_npu wheel on host memory.

``ascend-sim run -- COMMAND`` runs any command on it. What it shows: that a program's calls of torch_npu are valid,
what they compute, how many there are, and what they move. What it cannot show: the speed of a kernel, the rounding of
an NPU, races between streams, internal formats and graph mode.

Importing this package does nothing.
"""

__version__ = "0.1.0"
