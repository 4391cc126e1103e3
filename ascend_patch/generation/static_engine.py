"""One request at a time on upstream's static inference context, where a release has no dynamic engine that serves.

A prompt is read in one forward pass, then each token takes one. Keys and values are kept as upstream's layers keep them
for a static context; tokens are chosen as in :mod:`ascend_patch.generation.engine`.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.inference.communication_utils import recv_from_prev_pipeline_rank_, send_to_next_pipeline_rank
from megatron.core.inference.contexts.static_context import StaticInferenceContext
from megatron.core.transformer.utils import set_model_to_sequence_parallel
from torch import Tensor

from ascend_patch.generation import ranks
from ascend_patch.generation.base_engine import BaseEngine, Request
from ascend_patch.generation.errors import GenerationError
from ascend_patch.generation.sampling import Choice, SamplingOptions, choose


class StaticEngine(BaseEngine):
    """Generates, one request after the other. Sequence parallelism, which cannot share one token out, is taken back.

    Args:
        model, tokenizer, max_sequence_length: see :class:`BaseEngine`.

    Raises:
        GenerationError: as :class:`BaseEngine`, or the job has context parallelism.
    """

    def __init__(self, model: torch.nn.Module, tokenizer: Any, *, max_sequence_length: int) -> None:
        super().__init__(model, tokenizer, max_sequence_length=max_sequence_length, max_batch_size=1)
        config: Any = model.config
        if config.context_parallel_size > 1:
            raise GenerationError("Generation needs whole sequences; leave --context-parallel-size at 1.")
        if config.sequence_parallel:
            set_model_to_sequence_parallel(model, False)
        self._model: Any = model
        self._context = StaticInferenceContext(max_batch_size=1, max_sequence_length=max_sequence_length)
        self._requests: deque[Request] = deque()
        self._running: Request | None = None

    def cancel(self, request: Request) -> None:
        """See :meth:`BaseEngine.cancel`."""
        super().cancel(request)
        self._requests = deque(one for one in self._requests if one.finish is None)

    @property
    def busy(self) -> bool:
        """See :meth:`BaseEngine.busy`."""
        return bool(self._requests)

    def step(self) -> list[Request]:
        """See :meth:`BaseEngine.step`; the request is the oldest."""
        if not self._requests:
            return []
        request = self._requests[0]
        if request is self._running:
            self._context.enable_decode_mode()
            logits = self._forward(request.tokens[-1:])
        else:
            self._running = request
            self._context.reset()
            logits = self._forward(request.prompt)
        choice = None
        if logits is not None:
            history = [*request.prompt, *request.tokens]
            choice = choose(logits[: len(self.tokenizer)], request.options, history, len(request.tokens))
        self._update(request, ranks.from_last_stage(choice))
        if request.finish is not None:
            self._requests.popleft()
        return [request]

    def _submit(self, prompt: Sequence[int], options: SamplingOptions, begins_anew: bool = False) -> Request:
        request = self._new_request(prompt, options, begins_anew)
        self._requests.append(request)
        return request

    def _update(self, request: Request, choice: Choice) -> None:
        if choice.token == self._end(request.options):
            request.finish = "stop"
            return
        request.tokens.append(choice.token)
        if request.options.logprobs is not None:
            request.choices.append(choice)
        if request.reached_stop():
            request.finish = "stop"
        elif len(request.tokens) == self._most_tokens(request):
            request.finish = "length"

    @torch.inference_mode()
    def _forward(self, tokens: Sequence[int]) -> Tensor | None:
        """Logits ``[vocabulary]`` after ``tokens``, which follow what is in the cache; None before the last stage."""
        device = torch.cuda.current_device()
        start = self._context.sequence_len_offset
        positions = torch.arange(start, start + len(tokens), device=device).unsqueeze(0)
        if not parallel_state.is_pipeline_first_stage():
            config = self._model.config
            received = torch.empty(len(tokens), 1, config.hidden_size, dtype=config.pipeline_dtype, device=device)
            recv_from_prev_pipeline_rank_(received)
            self._model.set_input_tensor(received)
        output = self._model(
            torch.tensor([tokens], device=device),
            positions,
            None,
            inference_context=self._context,
            runtime_gather_output=True,
        )
        self._context.increment_sequence_len_offset(len(tokens))
        if parallel_state.is_pipeline_last_stage():
            return output[0, -1]
        send_to_next_pipeline_rank(output)
        return None
