"""A training job that is traced, sound or with a fault planted in it. Run as a script in a Megatron job:

``traced.py FOLDER@STEPS FAULT ARGUMENTS…``: the trace, a name of :data:`FAULTS`, and the arguments of training.
"""

import os
import runpy
import sys
from collections.abc import Callable, Sequence

import torch
from torch import nn

LAYER, EXPERT, MICRO_BATCH, TOKEN = 1, 2, 1, 5
"""Where the faults are, counted from 0."""


def scaled_expert(model: Sequence[nn.Module]) -> None:
    """The first projection of one expert is one per mille too large."""
    from megatron.core import mpu

    experts = _layer(model).mlp.experts
    local = EXPERT - mpu.get_expert_model_parallel_rank() * experts.num_local_experts
    if 0 <= local < experts.num_local_experts:
        experts.linear_fc1.weight[local] *= 1.001


def lost_token(model: Sequence[nn.Module]) -> None:
    """One token of a micro-batch reaches its experts empty."""
    dispatcher = _layer(model).mlp.token_dispatcher
    preprocess, calls = dispatcher.dispatch_preprocess, []

    def lose(hidden_states: torch.Tensor, *args, **kwargs):
        calls.append(None)
        if len(calls) == MICRO_BATCH + 1:
            kept = torch.ones(*hidden_states.shape[:-1], 1)
            kept.view(-1)[TOKEN] = 0
            hidden_states = hidden_states * kept
        return preprocess(hidden_states, *args, **kwargs)

    dispatcher.dispatch_preprocess = lose


def swapped_ranks(model: Sequence[nn.Module]) -> None:
    """The two expert parallel ranks have each other's experts."""
    from megatron.core import mpu

    group = mpu.get_expert_model_parallel_group()
    for layer in (_layer(model).mlp.experts.linear_fc1, _layer(model).mlp.experts.linear_fc2):
        weights = [torch.empty_like(layer.weight) for _ in range(2)]
        torch.distributed.all_gather(weights, layer.weight.detach(), group=group)
        layer.weight.copy_(weights[1 - group.rank()])


def _layer(model: Sequence[nn.Module]) -> nn.Module:
    from megatron.core.utils import unwrap_model

    (chunk,) = unwrap_model(model)
    return chunk.decoder.layers[LAYER]


FAULTS: dict[str, Callable[[Sequence[nn.Module]], None]] = {
    "none": lambda model: None,
    "scaled_expert": scaled_expert,
    "lost_token": lost_token,
    "swapped_ranks": swapped_ranks,
}


def main() -> None:
    """The job; see the module's docstring."""
    from megatron.training import training

    from ascend_patch.run import BUNDLED

    os.environ["ASCEND_PATCH_TRACE"], fault = sys.argv.pop(1), FAULTS[sys.argv.pop(1)]
    set_up = training.setup_model_and_optimizer

    def set_up_and_break(*args, **kwargs):
        model, *rest = set_up(*args, **kwargs)
        with torch.no_grad():
            fault(model)
        return model, *rest

    training.setup_model_and_optimizer = set_up_and_break
    runpy.run_path(str(BUNDLED), run_name="__main__")


if __name__ == "__main__":
    main()
