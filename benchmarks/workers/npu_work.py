"""A few training steps of upstream's loop on the simulated NPU, counted by part of the model.

``--model NAME`` is one of :data:`benchmarks.workload.NPU_MODELS`, all other arguments are upstream's. The simulator
counts (``ascend-sim run --report``); this worker only says which part of the model is at work: a scope around every
module that has one, and around the optimizer's step.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch

from ascend_patch.activation import activate
from benchmarks.workload import NPU_MODELS, RandomTokens

# By the last name of a module's path; a module without one belongs to the part around it.
PARTS = {
    "embedding": "embedding",
    "input_layernorm": "norms",
    "pre_mlp_layernorm": "norms",
    "final_layernorm": "norms",
    "self_attention": "attention: projections, rotary",
    "core_attention": "attention: scores and values",
    "mlp": "experts: dispatch and combine",
    "router": "router",
    "experts": "experts: grouped GEMM, SwiGLU",
    "output_layer": "output layer",
}
LAYER = "residuals"
OPTIMIZER = "optimizer"


def main() -> None:
    """Train; the command line ends it."""
    model_flag = sys.argv.index("--model")
    sizes = NPU_MODELS[sys.argv[model_flag + 1]]
    del sys.argv[model_flag : model_flag + 2]
    activate()
    from megatron.core.optimizer.optimizer import MegatronOptimizer
    from megatron.core.transformer.transformer_layer import TransformerLayer

    from ascend_patch import pretrain_gpt
    from ascend_patch.compat.training import pretrain

    scoped: set[int] = set()

    def forward_step(data_iterator: Any, model: torch.nn.Module) -> Any:
        if id(model) not in scoped:
            scoped.add(id(model))
            for path, module in model.named_modules():
                part = LAYER if isinstance(module, TransformerLayer) else PARTS.get(path.rpartition(".")[2])
                if part is not None:
                    _count_forward(module, part)
            for kind in _subclasses(MegatronOptimizer):
                if "step" in vars(kind):
                    setattr(kind, "step", _counted(vars(kind)["step"], OPTIMIZER))  # noqa: B010
        return pretrain_gpt.forward_step(data_iterator, model)

    def datasets_provider(num_samples: list[int], vp_stage: int | None = None) -> tuple[Any, None, None]:
        return RandomTokens(num_samples[0], sizes), None, None

    pretrain(datasets_provider, pretrain_gpt.model_provider, forward_step, pretrain_gpt.check_arguments)


def _count_forward(module: torch.nn.Module, part: str) -> None:
    module.register_forward_pre_hook(lambda module, inputs: torch.ops.ascend_sim.enter_scope(part))
    module.register_forward_hook(lambda module, inputs, outputs: torch.ops.ascend_sim.leave_scope())


def _counted(function: Callable, part: str) -> Callable:
    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        torch.ops.ascend_sim.enter_scope(part)
        try:
            return function(*args, **kwargs)
        finally:
            torch.ops.ascend_sim.leave_scope()

    return counted


def _subclasses(kind: type) -> set[type]:
    children: list[type] = kind.__subclasses__()
    return {kind}.union(*map(_subclasses, children))


if __name__ == "__main__":
    main()
