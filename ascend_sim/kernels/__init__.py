"""Reference kernels: what torch_npu's fused operators compute, on plain CPU tensors.

Importing this package fills :data:`ascend_sim.kernels.registry.KERNELS`; it needs neither torch_npu nor a device.
One module holds one family of operators. A kernel's docstring says what it computes, its entry in the table gives the
public source; what that source leaves open is listed as an assumption and ends up in
``docs/simulator_assumptions.md``.
"""

import importlib

_FAMILIES = (
    "activation",
    "attention",
    "grouped_matmul",
    "loss",
    "moe_gating",
    "moe_gating_v2",
    "moe_permute",
    "moe_permute_routing_map",
    "moe_unpermute_routing_map",
    "norm",
    "optimizer",
    "paged_attention",
    "parallel_matmul",
    "plumbing",
    "rotary",
)

for _family in _FAMILIES:
    importlib.import_module(f"{__name__}.{_family}")
