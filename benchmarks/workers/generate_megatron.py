"""Our engine on a Megatron-LM checkpoint: ``generate_megatron BATCH LENGTH MEGATRON'S FLAGS``.

Requests and answers are those of :mod:`benchmarks.workers.generate_hugging_face`.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

from ascend_patch.activation import activate
from ascend_patch.devices.cpu.memory import peak_resident_bytes, reset_peak
from benchmarks.gate import answer_on_standard_streams


class _Tokens:
    """What the engine asks a tokenizer for where there is no text."""

    eos_token_id = None

    def __init__(self, number: int) -> None:
        self._number = number

    def __len__(self) -> int:
        return self._number


def prepare() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Load the model of the command line."""
    batch, length = int(sys.argv.pop(1)), int(sys.argv.pop(1))
    activate()
    from ascend_patch.generation import model
    from ascend_patch.generation.engine import Engine
    from ascend_patch.generation.sampling import SamplingOptions

    args = model.initialize()
    tokens = _Tokens(args.vocab_size)
    engine = Engine(
        model.load_model(args),
        tokens,
        max_sequence_length=length,
        max_batch_size=batch,
        prompts_at_once=batch,
        prefix_caching=False,
    )

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        options = SamplingOptions(max_new_tokens=request["new"], ignore_eos=True)
        reset_peak()
        started = time.perf_counter()
        running = [engine.submit(prompt, options) for prompt in request["prompts"]]
        while not all(one.tokens for one in running):
            engine.step()
        first = time.perf_counter()
        decoded = sum(request["new"] - len(one.tokens) for one in running)
        while engine.busy:
            engine.step()
        return {
            "peak": peak_resident_bytes(),
            "prefill": first - started,
            "decode": time.perf_counter() - first,
            "decoded": decoded,
        }

    return answer


if __name__ == "__main__":
    answer_on_standard_streams(prepare)
