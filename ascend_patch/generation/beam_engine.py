"""Beam search on the engine: the beams of a prompt are requests that run side by side.

They are submitted together and read their prompt in the same step, so that they always have the same length. Where a
beam goes on in several ways, and another one ends, the cache of one request is copied to another's.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor

from ascend_patch.generation import ranks
from ascend_patch.generation.base_engine import Request
from ascend_patch.generation.beam_search import BeamOptions, Beams, Candidate
from ascend_patch.generation.engine import Engine
from ascend_patch.generation.errors import GenerationError
from ascend_patch.generation.sampling import SamplingOptions


class BeamEngine(Engine):
    """Generates by beam search. A request's tokens are there when it has finished.

    Args:
        max_batch_size: beams that run at once.
        beams: of each prompt.
        rest: see :class:`Engine`.

    Raises:
        GenerationError: as :class:`Engine`, or ``max_batch_size`` is smaller than the number of beams.
    """

    def __init__(
        self, model: torch.nn.Module, tokenizer: Any, beams: BeamOptions, *, max_batch_size: int = 8, **rest: Any
    ) -> None:
        if max_batch_size < beams.num_beams:
            raise GenerationError(
                f"{beams.num_beams} beams of a prompt run at once, and max_batch_size is {max_batch_size}. Allow "
                "more (--max-batch-size), or search with fewer beams (--num-beams)."
            )
        # The cache of complete blocks would let the first of equal prompts go ahead of the others.
        super().__init__(
            model,
            tokenizer,
            max_batch_size=max_batch_size,
            prompts_at_once=beams.num_beams + 1,  # the last is for a token of each beam that runs
            prefix_caching=False,
            small_blocks=True,  # they are copied where beams fork
            **rest,
        )
        self._beams = beams
        self._waiting: deque[_Group] = deque()
        self._groups: list[_Group] = []

    def submit(self, prompt: Sequence[int], options: SamplingOptions, begins_anew: bool = False) -> Request:
        """See :meth:`Engine.submit`.

        Raises:
            GenerationError: also where ``options`` are not for a search.
        """
        self._check(prompt)
        self._beams.check(options)
        request = self._new_request(prompt, options, begins_anew)
        end = self._end(options)
        beams = Beams(prompt, self._beams, self._most_tokens(request), None if end < 0 else end)
        self._waiting.append(_Group(request, beams))
        return request

    @property
    def busy(self) -> bool:
        """See :meth:`Engine.busy`."""
        return bool(self._waiting) or super().busy

    def step(self) -> list[Request]:
        """See :meth:`Engine.step`; returns the requests that have finished."""
        # One group a step: that many prompts are read at once.
        if self._waiting and len(self._requests) + self._beams.num_beams <= self.max_batch_size:
            group = self._waiting.popleft()
            options = replace(group.request.options, ignore_eos=True)
            group.ids = [self._submit(group.request.prompt, options).id for _ in range(self._beams.num_beams)]
            self._groups.append(group)
        super().step()
        finished = [group.request for group in self._groups if group.request.finish is not None]
        self._groups = [group for group in self._groups if group.request.finish is None]
        return finished

    def _choose(self, logits: Any, ids: Sequence[int]) -> Any:
        """See :meth:`Engine._choose`."""
        rows = {id: row for row, id in enumerate(ids)}
        found: list[list[Candidate]] | None = None
        if parallel_state.is_pipeline_last_stage():
            found = [
                group.beams.candidates(
                    logits[0, [rows[id] for id in group.ids], : len(self.tokenizer)],
                    group.request.options.repetition_penalty,
                )
                for group in self._groups
            ]
        for group, candidates in zip(self._groups, ranks.from_last_stage(found), strict=True):
            running = group.beams.advance(candidates)
            self._follow(group, running, rows)
            if parallel_state.is_pipeline_last_stage():
                for id, candidate in zip(group.ids, running, strict=True):
                    logits[0, rows[id]].fill_(-torch.inf)
                    logits[0, rows[id], candidate.token] = 0.0
            if group.beams.finished:
                self._finish(group)
        return logits

    def _follow(self, group: "_Group", running: Sequence[Candidate], rows: dict[int, int]) -> None:
        """Give each beam the cache of the one that it goes on."""
        context = self._context
        first = len(group.request.prompt) // self.block_tokens  # the blocks before have the same content
        blocks: list[Tensor] = []
        for id in group.ids:
            row = context.paused_request_count + rows[id]
            blocks.append(context.request_to_kv_block_ids[row, first : int(context.request_kv_block_counts[row])])
        moved = [(place, candidate.beam) for place, candidate in enumerate(running) if candidate.beam != place]
        if moved:
            cache = context.memory_buffer
            target, source = (torch.cat([blocks[pair[i]] for pair in moved]).to(cache.device) for i in (0, 1))
            cache.index_copy_(2, target.long(), cache.index_select(2, source.long()))

    def _finish(self, group: "_Group") -> None:
        best = group.beams.best
        group.request.tokens = best.tokens
        group.request.finish = group.request.finish or ("stop" if best.ended else "length")
        for id in group.ids:
            self.cancel(self._requests[id])


@dataclass
class _Group:
    """A request, and the beams that work on it."""

    request: Request
    beams: Beams
    ids: list[int] = field(default_factory=list)
    """Of the engine's requests, one a beam."""
