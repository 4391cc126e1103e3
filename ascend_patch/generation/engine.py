"""Many requests at once on upstream's dynamic inference engine: continuous batching over a paged cache.

Upstream schedules, batches and keeps the cache. What is added here is the choice of tokens
(:mod:`ascend_patch.generation.sampling`), made where the model hands its logits back to the engine, and the end of a
request at a text or because nobody wants it any more.
"""

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.inference.config import InferenceConfig, PrefixCachingEvictionPolicy
from megatron.core.inference.contexts.dynamic_context import DynamicInferenceContext
from megatron.core.inference.engines.dynamic_engine import DynamicInferenceEngine
from megatron.core.inference.model_inference_wrappers.gpt.gpt_inference_wrapper import GPTInferenceWrapper
from megatron.core.inference.sampling_params import SamplingParams
from megatron.core.inference.text_generation_controllers.text_generation_controller import TextGenerationController
from torch import Tensor

from ascend_patch.compat.inference import keeps_prefixes
from ascend_patch.generation import ranks
from ascend_patch.generation.base_engine import BaseEngine, Request
from ascend_patch.generation.decoding import shorten
from ascend_patch.generation.sampling import Choice, SamplingOptions, choose
from ascend_patch.ops import registry

BLOCK_TOKENS = 256
"""Tokens in a block of the cache: FlashAttention 2 takes multiples of 256, Ascend's operator of 128 up to 512."""


class Engine(BaseEngine):
    """Generates.

    Args:
        model, tokenizer, max_sequence_length: see :class:`BaseEngine`.
        max_batch_size: requests that run at once; more of them wait. Rounded up to a multiple of the tensor parallel
            size.
        prompts_at_once: as many prompts of the greatest length are always read in one step, if there is room for them.
        prefix_caching: what is there in the cache of a prompt's beginning, from other requests, is not computed again;
            on releases that can.
        small_blocks: the cache has blocks of :data:`BLOCK_TOKENS` tokens, as it has with ``prefix_caching``, even where
            attention is faster with one block a request.

    Raises:
        GenerationError: as :class:`BaseEngine`.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: Any,
        *,
        max_sequence_length: int,
        max_batch_size: int = 8,
        prompts_at_once: int = 1,
        prefix_caching: bool = True,
        small_blocks: bool = False,
    ) -> None:
        model_config: Any = model.config
        tensor = model_config.tensor_model_parallel_size
        max_batch_size = -(-max_batch_size // tensor) * tensor  # upstream wants whole shares
        super().__init__(model, tokenizer, max_sequence_length=max_sequence_length, max_batch_size=max_batch_size)
        self._requests: dict[int, Request] = {}
        self._chosen: dict[int, Choice] = {}
        keeps = prefix_caching and keeps_prefixes()
        self.block_tokens = BLOCK_TOKENS if keeps or small_blocks else _block_tokens(max_sequence_length)
        config = InferenceConfig(
            block_size_tokens=self.block_tokens,
            max_sequence_length=max_sequence_length,
            max_requests=self.max_batch_size,
            max_tokens=max(prompts_at_once * max_sequence_length, self.max_batch_size),
            buffer_size_gb=_cache_gib(model_config, self.block_tokens, max_sequence_length, self.max_batch_size),
            enable_prefix_caching=keeps,
            prefix_caching_eviction_policy=PrefixCachingEvictionPolicy.LRU,
        )
        # Upstream makes buffers in NVLink's shared memory for experts on several ranks, whatever the dispatcher, unless
        # the configuration says otherwise (from 0.18 on). The dispatcher of training is used here.
        model_config.inference_moe_token_dispatcher_type = "nccl"
        shorten(model)
        self._context = _Context(model_config, config)
        wrapper = _ModelWithChoice(model, self._context, self._choose)
        self._engine = DynamicInferenceEngine(TextGenerationController(wrapper, _NoText(tokenizer)), self._context)

    def _submit(self, prompt: Sequence[int], options: SamplingOptions, begins_anew: bool = False) -> Request:
        request = self._new_request(prompt, options, begins_anew)
        self._requests[request.id] = request
        self._engine.add_request(
            request.id,
            request.prompt,
            # Tokens are chosen before the engine sees the logits; it takes the largest.
            SamplingParams(
                num_tokens_to_generate=self._most_tokens(request),
                termination_id=self._end(options),
                top_k=1,
            ),
        )
        return request

    @property
    def busy(self) -> bool:
        """Whether any request goes on."""
        return bool(self._requests)

    def step(self) -> list[Request]:
        """One more token for the requests that run; returns those that have a new one, or have finished."""
        self._chosen.clear()
        result = self._engine.step_modern()
        finished = {record.request_id: record for record in result["finished_request_records"]}
        running = {id: self._engine.requests[id].record for id in self._requests if id not in finished}
        changed = []
        for id, record in (running | finished).items():
            request = self._requests[id]
            if request.finish is None and self._update(request, record, id in finished):
                changed.append(request)
            if id in finished:
                request.finish = request.finish or "length"
                del self._requests[id]
            elif request.finish is not None:
                self._engine.stop_word_finished_request_ids.add(id)  # upstream ends it with its next step
        return changed

    def _update(self, request: Request, record: Any, finished: bool) -> bool:
        """Take over what the engine has; returns whether that is new to the user."""
        tokens = [token for part in record.requests for token in part.generated_tokens]
        new = tokens[len(request.tokens) :]
        if not new:
            return False
        if finished and tokens[-1] == self._end(request.options):
            request.finish = "stop"
            new.pop()
        request.tokens += new
        if new and request.options.logprobs is not None:
            request.choices.append(self._chosen[request.id])
        if request.reached_stop():
            request.finish = "stop"
        return True

    def _choose(self, logits: Any, ids: Sequence[int]) -> Any:
        """``logits [1, rows, vocabulary]`` in which the largest of each row is the chosen token's.

        Args:
            logits: of all but the last stage of a pipeline, None, or what goes to the next stage.
            ids: of the requests of the first rows, in their order.
        """
        if parallel_state.is_pipeline_last_stage():
            self._choose_rows(logits, ids)
        if parallel_state.get_pipeline_model_parallel_world_size() == 1:
            # The host compares numbers of half precision one by one. Another stage would expect them as they are.
            return logits.float() if logits.device.type == "cpu" else logits
        if any(self._requests[id].options.logprobs is not None for id in ids):
            # The engine tells the other stages the tokens, and nothing else.
            self._chosen = ranks.from_last_stage(self._chosen)
        return logits

    def _choose_rows(self, logits: Tensor, ids: Sequence[int]) -> None:
        logits[..., len(self.tokenizer) :] = -torch.inf  # padding of the vocabulary
        for row, id in zip(logits[0], ids, strict=False):
            request = self._requests[id]
            if not request.options.plain:
                choice = choose(
                    row[: len(self.tokenizer)],
                    request.options,
                    [*request.prompt, *request.tokens],
                    len(request.tokens),
                )
                self._chosen[id] = choice
                row.fill_(-torch.inf)
                row[choice.token] = 0.0


class _Context(DynamicInferenceContext):
    """Upstream's, without rounding batches up: that saves CUDA graphs, and costs time where there are none."""

    TOKEN_ROUNDER = 1
    REQUEST_ROUNDER = 1


class _ModelWithChoice(GPTInferenceWrapper):
    """The model as the engine calls it; its logits leave with the choice made."""

    def __init__(self, model: torch.nn.Module, context: Any, choose: Callable[[Any, Sequence[int]], Any]) -> None:
        super().__init__(model, context)
        self._choose = choose

    @torch.inference_mode()
    def run_one_forward_step(self, inference_input: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor | None:
        """See upstream's: ``[1, rows, vocabulary]``, one row a request, and None before the last stage."""
        logits = super().run_one_forward_step(inference_input, *args, **kwargs)
        context = self.inference_context
        active = context.request_ids[context.paused_request_count : context.total_request_count]
        return self._choose(logits, active.tolist())


class _NoText:
    """The tokenizer as the engine sees it: text is made here, not there."""

    bos = None

    def __init__(self, tokenizer: Any) -> None:
        self.vocab_size = len(tokenizer)
        self.eod = tokenizer.eos_token_id

    def tokenize(self, text: str) -> list[int]:
        """Never called: prompts are token ids."""
        raise NotImplementedError("the engine takes token ids")

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Nothing: see the class."""
        return ""


def _block_tokens(max_sequence_length: int) -> int:
    """Tokens in a block; all of a request's where they are read where they lie, not gathered in each step and layer."""
    kernels = registry.selected()["paged_attention"] == "npu" or importlib.util.find_spec("flash_attn") is not None
    return BLOCK_TOKENS if kernels else -(-max_sequence_length // BLOCK_TOKENS) * BLOCK_TOKENS


def _cache_gib(config: Any, block_tokens: int, max_sequence_length: int, max_batch_size: int) -> float:
    """GiB that hold the keys and values of all requests at their longest, on this rank."""
    blocks = max_batch_size * -(-max_sequence_length // block_tokens) + 1  # one is the engine's own
    groups = config.num_query_groups or config.num_attention_heads
    heads = max(1, groups // config.tensor_model_parallel_size)
    layers = -(-config.num_layers // config.pipeline_model_parallel_size)
    token = 2 * layers * heads * config.kv_channels * config.params_dtype.itemsize
    return (blocks * block_tokens + 1) * token / 2**30  # a token, so that rounding takes no block away
