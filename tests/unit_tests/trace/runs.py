"""Traces of made-up runs: one computation, spread over ranks in different ways."""

from dataclasses import replace

import numpy

from ascend_patch.trace.store import BACKWARD, FORWARD, GRADIENT, Coordinates, Digest, Layout, RankTrace, Record

LAYERS, EXPERTS, SAMPLES, TOKENS, HIDDEN = 4, 4, 8, 4, 8
ONE = Layout(
    tensor=1,
    pipeline=1,
    virtual=1,
    context=1,
    data=1,
    expert=1,
    expert_tensor=1,
    sequence_parallel=False,
    distributed_optimizer=True,
    micro_batch_size=1,
    micro_batches=SAMPLES,
)


def layout(micro_batch_size: int = 1, micro_batches: int | None = None, **sizes: int) -> Layout:
    """:data:`ONE` with other sizes, and as many micro-batches as make up all samples."""
    data = sizes.get("data", 1)
    batches = micro_batches or SAMPLES // (data * micro_batch_size)
    return replace(ONE, micro_batch_size=micro_batch_size, micro_batches=batches, **sizes)


def digest_of(array: numpy.ndarray) -> Digest:
    return Digest(
        array.size,
        float(array.sum()),
        float((array**2).sum()),
        float(abs(array).max(initial=0)),
        f"{hash(array.tobytes()) % 2**64:x}",
    )


class Computation:
    """All tensors of one step of the whole model, by name.

    Outputs are ``[sample, token, hidden]``; every sample has the same number of tokens for each expert. What is not
    split over tensor parallel ranks is held by all of them.
    """

    def __init__(self, seed: int) -> None:
        random = numpy.random.default_rng(seed)
        shape = (SAMPLES, TOKENS, HIDDEN)
        self.outputs = {
            (direction, f"decoder.layers.{layer}.{name}"): random.standard_normal(shape)
            for direction in (FORWARD, BACKWARD)
            for layer in range(LAYERS)
            for name in ("linear_qkv", "linear_proj", *(f"mlp.experts.linear_fc1[{e}]" for e in range(EXPERTS)))
        }
        self.gradients = {
            f"decoder.layers.{layer}.{name}": random.standard_normal(24)
            for layer in range(LAYERS)
            for name in (
                "norm.weight",
                "linear_qkv.weight",
                *(f"mlp.experts.linear_fc1.weight{e}" for e in range(EXPERTS)),
            )
        }

    def trace(self, layout: Layout) -> list[RankTrace]:
        """Every rank's records. Layers are dealt to the stages in order, experts to the expert parallel ranks."""
        return [self._rank(layout, rank) for rank in range(layout.world_size)]

    def _rank(self, layout: Layout, rank: int) -> RankTrace:
        tensor, rest = rank % layout.tensor, rank // layout.tensor
        data, pipeline = rest % layout.data, rest // layout.data
        at = Coordinates(tensor, pipeline, 0, data, data % layout.expert, tensor, data // layout.expert)
        stages = layout.pipeline * layout.virtual
        records = []
        for chunk in range(layout.virtual):
            stage = chunk * layout.pipeline + pipeline
            layers = range(stage * LAYERS // stages, (stage + 1) * LAYERS // stages)
            for batch in range(layout.micro_batches):
                records += self._outputs(layout, at, layers, batch, chunk)
            records += self._gradients(layout, at, layers, chunk)
        return RankTrace(1, rank, layout, at, "cpu", {}, tuple(records))

    def _outputs(self, layout: Layout, at: Coordinates, layers: range, batch: int, chunk: int) -> list[Record]:
        size, records = layout.micro_batch_size, []
        for (direction, name), whole in self.outputs.items():
            if int(name.split(".")[2]) not in layers:
                continue
            first, samples = (batch * layout.data + at.data) * size, size
            if "experts" in name:
                if not _is_mine(name, layout, at):
                    continue
                # Of all ranks whose tokens come here: those with the same place among the copies of the experts.
                first, samples = (
                    batch * layout.data * size + at.expert_data * layout.expert * size,
                    layout.expert * size,
                )
            mine = whole[first : first + samples]
            if not name.endswith("linear_proj"):
                mine = numpy.array_split(mine, layout.tensor, axis=2)[at.tensor]
            records.append(Record(direction, name, 0, 0, batch, chunk, (), digest_of(mine)))
        return records

    def _gradients(self, layout: Layout, at: Coordinates, layers: range, chunk: int) -> list[Record]:
        records = []
        for name, whole in self.gradients.items():
            if int(name.split(".")[2]) not in layers or not _is_mine(name, layout, at):
                continue
            split, mine = [], whole
            if not name.endswith("norm.weight"):
                split, mine = ["tp"], numpy.array_split(mine, layout.tensor)[at.tensor]
            if layout.distributed_optimizer:
                place, size = (
                    (at.expert_data, layout.data // layout.expert) if "experts" in name else (at.data, layout.data)
                )
                split, mine = [*split, "dp"], numpy.array_split(mine, size)[place]
            records.append(Record(GRADIENT, name, 0, 0, 0, chunk, tuple(split), digest_of(mine)))
        return records


def _is_mine(name: str, layout: Layout, at: Coordinates) -> bool:
    """Whether the expert that a name ends with, if any, is of this rank."""
    if "experts" not in name:
        return True
    number = int(name.rstrip("]")[-1])
    return number // (EXPERTS // layout.expert) == at.expert
