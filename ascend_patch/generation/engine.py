"""Many requests at once on upstream's dynamic inference engine: continuous batching over a paged cache.

Upstream schedules, batches and keeps the cache. What is added here is the choice of tokens
(:mod:`ascend_patch.generation.sampling`), made where the model hands its logits back to the engine, and the end of a
request at a text or because nobody wants it any more.

In a job of several ranks every rank calls every method with the same arguments, in the same order, and gets the same
results. :meth:`Engine.generate` shares the prompts out over the data parallel ranks; of requests that are submitted one
by one, each of these ranks works on all.
"""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

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
from ascend_patch.generation.decoding import shorten
from ascend_patch.generation.errors import GenerationError
from ascend_patch.generation.sampling import Choice, SamplingOptions, choose
from ascend_patch.generation.shares import Shares
from ascend_patch.ops import registry

Finish = Literal["stop", "length", "cancelled"]

BLOCK_TOKENS = 256
"""Tokens in a block of the cache: FlashAttention 2 takes multiples of 256, Ascend's operator of 128 up to 512."""

_TOKENS_OF_A_CHARACTER = 4
"""At most, where a tokenizer falls back to bytes."""

_FILLER = ([0, 0], SamplingOptions(max_new_tokens=1, ignore_eos=True))
"""A request of a rank that has none: the experts on it are needed by the others."""


@dataclass
class Request:
    """A prompt and what has been generated for it so far."""

    id: int
    prompt: list[int]
    options: SamplingOptions
    tokenizer: Any
    begins_anew: bool = False
    """The text is an answer of its own, not the prompt's continuation, which may begin with a space."""
    tokens: list[int] = field(default_factory=list)
    """Generated tokens, without the one that ended the request."""
    choices: list[Choice] = field(default_factory=list)
    """One for each of :attr:`tokens`, where log-probabilities were asked for."""
    finish: Finish | None = None
    """None: it goes on."""

    @property
    def text(self) -> str:
        """The generated tokens as text, up to the first of the texts that end it."""
        text = self._decoded()
        return text[: self._stop_in(text)]

    def reached_stop(self) -> bool:
        """Whether one of the texts that end it is complete."""
        return bool(self.options.stop) and self._stop_in(self._decoded()) is not None

    def _decoded(self) -> str:
        before = [] if self.begins_anew else self.prompt[-_TOKENS_OF_A_CHARACTER:]
        start = len(self.tokenizer.decode(before, skip_special_tokens=True))
        return self.tokenizer.decode(before + self.tokens, skip_special_tokens=True)[start:]

    def _stop_in(self, text: str) -> int | None:
        """Where the first text that ends it begins."""
        return min((place for stop in self.options.stop if (place := text.find(stop)) >= 0), default=None)


class Engine:
    """Generates.

    Args:
        model: in eval mode, on this rank's device; of a pipeline, this rank's stage.
        tokenizer: of transformers.
        max_sequence_length: tokens of a prompt and its completion together.
        max_batch_size: requests that run at once; more of them wait. Rounded up to a multiple of the tensor parallel
            size.
        prompts_at_once: as many prompts of the greatest length are always read in one step, if there is room for them.
        prefix_caching: what is there in the cache of a prompt's beginning, from other requests, is not computed again;
            on releases that can.
        small_blocks: the cache has blocks of :data:`BLOCK_TOKENS` tokens, as it has with ``prefix_caching``, even where
            attention is faster with one block a request.

    Raises:
        GenerationError: the tokenizer has more tokens than the model.
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
        self.tokenizer = tokenizer
        self.max_sequence_length = max_sequence_length
        self._requests: dict[int, Request] = {}
        self._next = 0
        self._chosen: dict[int, Choice] = {}
        model_config: Any = model.config
        self._shares = Shares(model_config)
        tensor = model_config.tensor_model_parallel_size
        self.max_batch_size = -(-max_batch_size // tensor) * tensor  # upstream wants whole shares
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
        controller = TextGenerationController(wrapper, _NoText(tokenizer))
        vocabulary = controller.vocab_size
        if len(tokenizer) > vocabulary:
            raise GenerationError(
                f"The tokenizer has {len(tokenizer)} tokens and the model {vocabulary}. Name the tokenizer that the "
                "model was trained with."
            )
        self._engine = DynamicInferenceEngine(controller, self._context)

    def submit(self, prompt: Sequence[int], options: SamplingOptions, begins_anew: bool = False) -> Request:
        """Queue a prompt; :meth:`step` works on it.

        Args:
            begins_anew: see :class:`Request`.

        Raises:
            GenerationError: the prompt is empty, too long, or has tokens that the tokenizer does not know.
        """
        self._check(prompt)
        return self._submit(prompt, options, begins_anew)

    def _submit(self, prompt: Sequence[int], options: SamplingOptions, begins_anew: bool = False) -> Request:
        request = Request(self._next, list(prompt), options, self.tokenizer, begins_anew)
        self._next += 1
        self._requests[request.id] = request
        room = self.max_sequence_length - len(prompt)
        self._engine.add_request(
            request.id,
            request.prompt,
            # Tokens are chosen before the engine sees the logits; it takes the largest.
            SamplingParams(
                num_tokens_to_generate=min(options.max_new_tokens, room),
                termination_id=self._end(options),
                top_k=1,
            ),
        )
        return request

    def cancel(self, request: Request) -> None:
        """Nobody wants it any more: :meth:`step` does not name it again."""
        if request.finish is None:
            request.finish = "cancelled"

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

    def generate(self, prompts: Sequence[Sequence[int]], options: SamplingOptions) -> list[Request]:
        """The completions of several prompts, in their order. They may be of any lengths, and more than fit at once.

        Each prompt draws from a seed of its own, ``options.seed`` plus its place.

        Raises:
            GenerationError: a prompt is refused, as :meth:`submit` does; none has been worked on then.
        """
        for prompt in prompts:
            self._check(prompt)
        own = {
            place: self.submit(prompts[place], replace(options, seed=options.seed + place))
            for place in self._shares.own(len(prompts))
        }
        while self._shares.any_busy(self.busy):
            if not self.busy:
                Engine._submit(self, *_FILLER)
            self.step()
        found = self._shares.gather({place: replace(request, tokenizer=None) for place, request in own.items()})
        return [replace(request, tokenizer=self.tokenizer) for request in found]

    def _check(self, prompt: Sequence[int]) -> None:
        if not prompt:
            raise GenerationError(
                "The prompt is empty; at least one token is needed, such as the begin-of-sequence one."
            )
        if len(prompt) >= self.max_sequence_length:
            raise GenerationError(
                f"The prompt has {len(prompt)} tokens, and prompt and completion together may have "
                f"{self.max_sequence_length}. Shorten it, or allow more (--seq-length)."
            )
        if not 0 <= min(prompt) <= max(prompt) < len(self.tokenizer):
            raise GenerationError(
                f"The prompt has tokens from {min(prompt)} to {max(prompt)}; those of the tokenizer are 0 to "
                f"{len(self.tokenizer) - 1}."
            )

    def _end(self, options: SamplingOptions) -> int:
        return -1 if options.ignore_eos or self.tokenizer.eos_token_id is None else self.tokenizer.eos_token_id

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
        if parallel_state.get_pipeline_model_parallel_world_size() > 1 and any(
            self._requests[id].options.logprobs is not None for id in ids
        ):
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
