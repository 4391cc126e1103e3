"""Reference kernels: what torch_npu's fused operators compute, on plain CPU tensors.

Importing this package fills :data:`ascend_sim.kernels.registry.KERNELS`; it needs neither torch_npu nor a device.
One module holds one family of operators. A kernel's docstring gives the public source of its semantics; what that
source leaves open is listed as an assumption and ends up in ``docs/simulator_assumptions.md``.
"""

from ascend_sim.kernels import (
    activation,
    attention,
    grouped_matmul,
    loss,
    moe_gating,
    moe_permute,
    moe_permute_routing_map,
    norm,
    optimizer,
    plumbing,
    rotary,
)

__all__ = [
    "activation",
    "attention",
    "grouped_matmul",
    "loss",
    "moe_gating",
    "moe_permute",
    "moe_permute_routing_map",
    "norm",
    "optimizer",
    "plumbing",
    "rotary",
]
