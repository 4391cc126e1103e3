"""The collectives of one training step of upstream's loop, on as many simulated NPUs as there are ranks.

``FILE RANKS UPSTREAM'S ARGUMENTS…`` forks the ranks and writes what rank 0 recorded in the last step: a list of
:class:`ascend_sim.timeline.Event`, under scope :data:`LAYER` inside of transformer layers; groups with their size.
"""

import json
import multiprocessing
import os
import sys
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch.distributed.distributed_c10d import _world

from ascend_patch.activation import activate

LAYER = "layer"


def main(target: Path, ranks: int) -> None:
    """Fork the ranks and wait for them."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_rank, args=(target, rank, ranks)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))


def even_logits(logits: torch.Tensor) -> torch.Tensor:
    """Logits by which token ``i`` goes to experts ``i``, ``i + 1``, …: to each as many, whatever was drawn before.

    Args:
        logits: ``[…, experts]``, a token in each row; their gradient is passed on as it is.
    """
    experts = logits.shape[-1]
    token = torch.arange(logits.numel() // experts, device=logits.device).view(*logits.shape[:-1], 1)
    distance = (torch.arange(experts, device=logits.device) - token) % experts
    return logits + (-distance - logits).detach()


def _rank(target: Path, rank: int, ranks: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    activate()
    from megatron.core.transformer.moe import router
    from megatron.core.transformer.transformer_layer import TransformerLayer
    from megatron.training import training

    from ascend_patch import pretrain_gpt
    from ascend_patch.compat.training import pretrain
    from ascend_sim import timeline

    torch.set_num_threads(1)
    scoped: set[int] = set()
    recorded: list[timeline.Event] = []
    original = training.train_step

    @wraps(original)
    def train_step(*args: Any, **kwargs: Any) -> Any:
        with timeline.record() as events:
            result = original(*args, **kwargs)
        recorded[:] = events
        return result

    training.train_step = train_step
    router.apply_random_logits = even_logits  # what --moe-router-force-load-balancing calls

    def forward_step(data_iterator: Any, model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if id(model) not in scoped:
            scoped.add(id(model))
            for module in model.modules():
                if isinstance(module, TransformerLayer):
                    module.register_forward_pre_hook(lambda *_: torch.ops.ascend_sim.enter_scope(LAYER))
                    module.register_forward_hook(lambda *_: torch.ops.ascend_sim.leave_scope())
        return pretrain_gpt.forward_step(data_iterator, model, *args, **kwargs)

    provider = pretrain_gpt.train_valid_test_datasets_provider
    pretrain(provider, pretrain_gpt.model_provider, forward_step, pretrain_gpt.check_arguments)
    if rank == 0:
        sizes = {group.group_desc: f"{_short(group.group_desc)} ({group.size()})" for group in _world.pg_map}
        target.write_text(json.dumps([event._replace(group=sizes.get(event.group, event.group)) for event in recorded]))


def _short(group: str) -> str:
    return group.removesuffix("_GROUP").lower()


if __name__ == "__main__":
    file, number = sys.argv[1:3]
    del sys.argv[1:3]
    main(Path(file), int(number))
