"""How probable a model finds given continuations: forward passes of whole batches, in any layout.

What has the same input, as the answers "A" to "D" of one question have, goes through the model once. Inputs are padded
on the right, where a causal model does not look.

In a job of several ranks every rank calls :meth:`Scorer.score` with the same pairs, and gets all results. The rows are
dealt out over the data parallel ranks; all of them run the same number of forward passes of the same shape, filled up
with rows that nobody wants, because experts on several ranks need everybody at every layer.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from torch import Tensor

from ascend_patch.compat.inference import without_engine
from ascend_patch.generation.errors import GenerationError

Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids of a context and of its continuation."""

MICRO_BATCHES_A_STAGE = 4
"""Of a pipeline: with n stages, 4 n micro batches at once leave n - 1 of 5 n - 1 steps without work."""


class Score(NamedTuple):
    """What a continuation got."""

    logprob: float
    """Sum of the natural logarithms of its tokens' probabilities."""
    greedy: bool
    """Whether each of its tokens is the most probable one at its place."""


class Scorer:
    """Computes log-likelihoods.

    Args:
        model: in eval mode, on this rank's device; of a pipeline, this rank's stage.
        vocabulary: tokens that there are; what the model has beyond them is padding and takes no probability.
        max_length: tokens of an input. The last token of a continuation is not part of it.
        batch_size: sequences of a forward pass.

    Raises:
        GenerationError: the model has fewer tokens than ``vocabulary``, or sequences are cut over several ranks.
    """

    def __init__(self, model: torch.nn.Module, vocabulary: int, *, max_length: int, batch_size: int = 8) -> None:
        if parallel_state.get_context_parallel_world_size() > 1:
            raise GenerationError("Log-likelihoods need whole sequences; leave --context-parallel-size at 1.")
        self.max_length = max_length
        self._model = model
        config: Any = model.config
        self._multiple = config.tensor_model_parallel_size if config.sequence_parallel else 1
        self._vocabulary = vocabulary
        self._batch_size = batch_size

    def score(
        self, pairs: Sequence[Pair], on_scores: Callable[[list[tuple[int, Score]]], object] | None = None
    ) -> list[Score]:
        """The scores of ``pairs``, in their order.

        A context that is too long loses its beginning.

        Args:
            on_scores: called with the place in ``pairs`` and the score of those that are ready, now and then.

        Raises:
            GenerationError: a context or a continuation is empty, has unknown tokens, or a continuation is too long.
        """
        scores: dict[int, Score] = {}
        for rows in self._rounds(self._rows(pairs)):
            found = self._score_round(rows)
            scores.update(found)
            if on_scores:
                on_scores(found)
        return [scores[place] for place in range(len(pairs))]

    def _rows(self, pairs: Sequence[Pair]) -> list["_Row"]:
        """What goes through the model, the longest first: what does not fit into memory shows at once."""
        rows: dict[tuple[int, ...], _Row] = {}
        for place, (context, continuation) in enumerate(pairs):
            self._check(place, context, continuation)
            tokens = (*context, *continuation)[-self.max_length - 1 : -1]
            rows.setdefault(tokens, _Row(tokens)).wanted.append((place, tuple(continuation)))
        return sorted(rows.values(), key=lambda row: len(row.tokens), reverse=True)

    def _check(self, place: int, context: Sequence[int], continuation: Sequence[int]) -> None:
        if not context or not continuation:
            raise GenerationError(
                f"Pair {place} has {len(context)} tokens of context and {len(continuation)} of continuation; each "
                "needs one or more, the context such as the begin-of-sequence one."
            )
        if len(continuation) > self.max_length:
            raise GenerationError(
                f"Pair {place} has a continuation of {len(continuation)} tokens, and an input may have "
                f"{self.max_length}. Shorten it, or allow more (--seq-length)."
            )
        if not 0 <= min(*context, *continuation) <= max(*context, *continuation) < self._vocabulary:
            raise GenerationError(
                f"Pair {place} has tokens from {min(*context, *continuation)} to {max(*context, *continuation)}; those "
                f"of the tokenizer are 0 to {self._vocabulary - 1}."
            )

    def _rounds(self, rows: list["_Row"]) -> Iterator[list["_Row"]]:
        """As many rows as all ranks work on at once."""
        stages = parallel_state.get_pipeline_model_parallel_world_size()
        micro_batches = MICRO_BATCHES_A_STAGE * stages if stages > 1 else 1
        size = micro_batches * self._batch_size * parallel_state.get_data_parallel_world_size()
        for start in range(0, len(rows), size):
            yield rows[start : start + size]

    def _score_round(self, rows: list["_Row"]) -> list[tuple[int, Score]]:
        """The places in all pairs, and the scores, of what the rows are wanted for; the same on all ranks."""
        batches = self._deal(rows)
        with torch.no_grad(), without_engine():
            found = get_forward_backward_func()(
                forward_step_func=self._forward,
                data_iterator=iter(batches),
                model=self._model,
                num_microbatches=len(batches),
                seq_length=batches[0].length,
                micro_batch_size=batches[0].size,
                forward_only=True,
                collect_non_loss_data=True,
            )
        slots = {place: slot for slot, place in enumerate(place for row in rows for place, _ in row.wanted)}
        shared = torch.zeros(len(slots), 2, device=torch.cuda.current_device())
        # One rank of those that have computed the same gives its results; the sum over all ranks has everybody's.
        if parallel_state.is_pipeline_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0:
            for batch, values in zip(batches, found, strict=True):
                if batch.places:
                    shared[[slots[place] for place in batch.places]] = values
        torch.distributed.all_reduce(shared)
        values = shared.tolist()
        return [(place, Score(values[slot][0], bool(values[slot][1]))) for place, slot in slots.items()]

    def _deal(self, rows: list["_Row"]) -> list["_Batch"]:
        """This rank's micro batches; all ranks have the same number, of the same size and length."""
        ranks, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
        size = min(self._batch_size, -(-len(rows) // ranks))
        length = -(-max(len(row.tokens) for row in rows) // self._multiple) * self._multiple
        starts = range(rank * size, rank * size + len(rows), ranks * size)
        count = -(-len(rows) // (ranks * size))
        return [_Batch(rows[start : start + size], size, length) for start in starts[:count]]

    def _forward(self, batches: Iterator["_Batch"], model: torch.nn.Module) -> tuple:
        """As upstream's schedules call it: the next micro batch's output, and what takes its scores out of it."""
        batch = next(batches)
        tokens = batch.tokens().to(torch.cuda.current_device())
        positions = torch.arange(batch.length, device=tokens.device).expand_as(tokens)
        return model(tokens, positions, None), partial(self._pick, batch)

    def _pick(self, batch: "_Batch", logits: Tensor, non_loss_data: bool = True) -> Tensor:
        """Log-probability, and 1 for greedy, of what is wanted of a micro batch.

        Args:
            logits: ``[rows, length, this rank's part of the vocabulary]``, floating point.

        Returns:
            float32 ``[pairs, 2]``, in the order of ``batch.places``.
        """
        found = [
            value
            for row, output in zip(batch.rows, logits, strict=False)
            for value in self._pick_row(row, output[: len(row.tokens)])
        ]
        return torch.stack(found) if found else logits.new_zeros(0, 2, dtype=torch.float32)

    def _pick_row(self, row: "_Row", logits: Tensor) -> Iterator[Tensor]:
        longest = max(len(continuation) for _, continuation in row.wanted)
        # Only what is looked at leaves this rank; of most tasks that is one place in hundreds.
        logits = gather_from_tensor_model_parallel_region(logits[-longest:].contiguous())
        logprobs = torch.log_softmax(logits[:, : self._vocabulary].float(), dim=-1)
        likeliest = logprobs.argmax(dim=-1)
        for _, continuation in row.wanted:
            tokens = torch.tensor(continuation, device=logits.device)
            places = logprobs[-len(tokens) :].gather(1, tokens.unsqueeze(1))
            greedy = (likeliest[-len(tokens) :] == tokens).all()
            yield torch.stack([places.sum(), greedy.float()])


@dataclass(frozen=True)
class _Row:
    """An input, and what is to be known of it."""

    tokens: tuple[int, ...]
    wanted: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    """The place of a pair, and its continuation."""


@dataclass(frozen=True)
class _Batch:
    """A micro batch: rows, filled up to ``size`` sequences of ``length`` tokens."""

    rows: list[_Row]
    size: int
    length: int

    @property
    def places(self) -> list[int]:
        """Of the pairs that its rows are wanted for."""
        return [place for row in self.rows for place, _ in row.wanted]

    def tokens(self) -> Tensor:
        """int64 ``[size, length]`` on the host."""
        tokens = torch.zeros(self.size, self.length, dtype=torch.int64)
        for filled, row in zip(tokens, self.rows, strict=False):
            filled[: len(row.tokens)] = torch.tensor(row.tokens)
        return tokens
