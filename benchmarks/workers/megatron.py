"""Upstream's training loop, from the installed ``megatron-core`` wheel; arguments are upstream's own.

Which patches are applied is said in the environment (``ASCEND_PATCH_DISABLE``), as for any user. One argument
is not upstream's: ``--glibc-malloc`` takes back what the cpu device tells the allocator, which stock upstream
would not have.
"""

import sys

from ascend_patch.activation import activate
from ascend_patch.devices.cpu import allocator
from benchmarks.gate import Gate

_GLIBC_MALLOC = "--glibc-malloc"


def main() -> None:
    """Train until the gate closes."""
    gate = Gate.on_standard_streams()
    glibc_malloc = _GLIBC_MALLOC in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != _GLIBC_MALLOC]
    activate()
    from ascend_patch import pretrain_gpt
    from ascend_patch.compat.training import pretrain
    from benchmarks.workload import RandomTokens

    if glibc_malloc:
        allocator.restore()

    last: dict[str, object] = {}

    def forward_step(data_iterator, model):
        last.setdefault("parameters", sum(p.numel() for p in model.parameters()))
        gate.step(**last)
        losses, loss_func = pretrain_gpt.forward_step(data_iterator, model)
        last["loss"] = losses.detach().mean().item()
        return losses, loss_func

    def datasets_provider(num_samples, vp_stage=None):
        return RandomTokens(num_samples[0]), None, None

    pretrain(datasets_provider, pretrain_gpt.model_provider, forward_step, pretrain_gpt.check_arguments)


if __name__ == "__main__":
    main()
