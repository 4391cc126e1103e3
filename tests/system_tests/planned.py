"""What a training step really takes on the simulated NPU, counted, for :mod:`ascend_patch.planning` to be held against.

Run as a script, this is the job: ``planned.py FOLDER ARGUMENTS…`` trains, and each rank writes what its second step
took to ``FOLDER/RANK.json``: numbers of ``dense`` and ``experts`` weights; bytes of ``weights``, ``gradients``,
``optimizer``, of the ``activations`` that one forward pass of each of its model chunks leaves to the backward pass, and
``peak`` memory; how many passes were ``under_way`` at most; and the ``messages``: group and operation, and bytes.
"""

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from tests.system_tests.launcher import train
from tests.system_tests.mixtral import tiny


def count(processes: int, **flags: object) -> list[dict]:
    """What each rank took; flags are for :func:`mixtral.tiny`."""
    with tempfile.TemporaryDirectory() as name:
        words = [name, *tiny(**{"train_iters": 2} | flags)]
        variables = {"ASCEND_PATCH_DEVICE": "npu"}
        train(words, processes=processes, script=Path(__file__), variables=variables, timeout=400).succeeded()
        return [json.loads(Path(name, f"{rank}.json").read_text()) for rank in range(processes)]


class Step:
    """Counts in what upstream's loop calls."""

    def __init__(self) -> None:
        self.number = 0
        self.under_way = self.most_under_way = 0
        self.kept: list[int] = []

    def forward(self, original: Any, *arguments: Any, **options: Any) -> Any:
        before = torch.npu.memory_allocated()
        result = original(*arguments, **options)
        self.kept.append(torch.npu.memory_allocated() - before)
        self.under_way += 1
        self.most_under_way = max(self.under_way, self.most_under_way)
        return result

    def backward(self, original: Any, *arguments: Any, **options: Any) -> Any:
        self.under_way -= 1
        return original(*arguments, **options)

    def train(self, original: Any, *arguments: Any, **options: Any) -> Any:
        from ascend_sim import counters

        model, optimizer = arguments[2], arguments[3]
        self.kept.clear()
        counters.take()
        torch.npu.reset_peak_memory_stats()
        result = original(*arguments, **options)
        self.number += 1
        if self.number == 2:
            self.write(model, optimizer, counters.take())
        return result

    def write(self, model: list, optimizer: Any, counted: dict) -> None:
        numbers: Counter[str] = Counter()
        for chunk in model:
            for parameter in chunk.parameters():
                numbers["dense" if getattr(parameter, "allreduce", True) else "experts"] += parameter.numel()
        inner = [one.optimizer for one in getattr(optimizer, "chained_optimizers", [optimizer])]
        groups = [parameter for one in inner for group in one.param_groups for parameter in group["params"]]
        moments = [value for one in inner for state in one.state.values() for value in state.values()]
        messages: Counter[str] = Counter()
        for row in counted["collectives"]:
            messages[f"{row['group']} {row['name']}"] += row["bytes"]
        found = {
            **{"dense": numbers["dense"], "experts": numbers["experts"]},
            "weights": sum(buffer.param_data.nbytes for buffer in _buffers(model)),
            "gradients": sum(buffer.grad_data.nbytes for buffer in _buffers(model)),
            "optimizer": sum(one.nbytes for one in (*groups, *moments) if torch.is_tensor(one) and one.numel() > 1),
            "activations": self.kept,
            "under_way": self.most_under_way,
            "peak": counted["peak_memory_bytes"],
            "messages": messages,
        }
        Path(self.folder, f"{torch.distributed.get_rank()}.json").write_text(json.dumps(found))

    folder = ""


def _buffers(model: list) -> list:
    return [buffer for chunk in model for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers)]


def main() -> None:
    """The job; see the module's docstring."""
    step = Step()
    step.folder = sys.argv.pop(1)

    from megatron.core.pipeline_parallel import schedules
    from megatron.training import training

    from ascend_patch import pretrain_gpt
    from ascend_patch.compat.training import pretrain

    def wrapped(original: Any, count: Any) -> Any:
        return lambda *arguments, **options: count(original, *arguments, **options)

    schedules.backward_step = wrapped(schedules.backward_step, step.backward)
    training.train_step = wrapped(training.train_step, step.train)
    pretrain(
        pretrain_gpt.train_valid_test_datasets_provider,
        pretrain_gpt.model_provider,
        wrapped(pretrain_gpt.forward_step, step.forward),
        pretrain_gpt.check_arguments,
    )


if __name__ == "__main__":
    main()
