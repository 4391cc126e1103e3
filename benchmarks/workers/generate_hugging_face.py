"""``generate`` of transformers' ``MixtralForCausalLM``, as its users call it: ``generate_hugging_face FOLDER DTYPE``.

A request is ``{"prompts": [[token]], "new": int}``; the answer has the seconds until every prompt has its first token,
and those until it has all.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, StoppingCriteria

from ascend_patch.devices.cpu.memory import peak_resident_bytes, reset_peak
from benchmarks.gate import answer_on_standard_streams
from benchmarks.workload import TORCH_DTYPES


class _Clock(StoppingCriteria):
    """When each token was there; stops nothing."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def prepare() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Load the model of the command line."""
    folder, dtype = sys.argv[1:]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=TORCH_DTYPES[dtype], attn_implementation="sdpa").eval()

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        prompts, clock = torch.tensor(request["prompts"]), _Clock()
        reset_peak()
        started = time.perf_counter()
        model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=request["new"],
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            stopping_criteria=[clock],
        )
        return {
            "peak": peak_resident_bytes(),
            "prefill": clock.times[0] - started,
            "decode": clock.times[-1] - clock.times[0],
            "decoded": len(prompts) * (request["new"] - 1),
        }

    return answer


if __name__ == "__main__":
    answer_on_standard_streams(prepare)
