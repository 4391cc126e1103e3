"""How Megatron-LM spreads a model over ranks: tensor, pipeline (even, uneven, virtual) and expert parallelism."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise

from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.shape import ModelShape

_FLAGS = {
    "tensor": "--target-tensor-parallel-size",
    "pipeline": "--target-pipeline-parallel-size",
    "expert": "--target-expert-parallel-size",
    "expert_tensor": "--target-expert-tensor-parallel-size",
    "virtual": "--target-num-layers-per-virtual-pipeline-stage",
    "first_layers": "--target-decoder-first-pipeline-num-layers",
    "last_layers": "--target-decoder-last-pipeline-num-layers",
}


@dataclass(frozen=True)
class Rank:
    """The part of the model that one file in format `torch` holds."""

    tensor: int
    pipeline: int
    expert: int
    expert_tensor: int


@dataclass(frozen=True)
class Layout:
    """The sizes of the parallel groups, and which layers each pipeline stage holds.

    Sizes mean what Megatron-LM's flags of the same names mean. Nothing is checked against a model before
    :meth:`check`.
    """

    tensor: int = 1
    pipeline: int = 1
    expert: int = 1
    expert_tensor: int = 0
    """0: as `tensor`, upstream's default."""
    virtual: int = 1
    """Model chunks of a pipeline rank."""
    first_layers: int | None = None
    """Layers of the first pipeline rank, where they are not as many as the others'."""
    last_layers: int | None = None
    stages: tuple[int, ...] | None = None
    """Layers of each of the `pipeline * virtual` stages in the order of the model, where the numbers above do not
    describe them (`--pipeline-model-parallel-layout`)."""

    def __post_init__(self) -> None:
        if self.expert_tensor == 0:
            object.__setattr__(self, "expert_tensor", self.tensor)
        for name in ("tensor", "pipeline", "expert", "expert_tensor", "virtual"):
            if getattr(self, name) < 1:
                raise CheckpointError(f"{_FLAGS[name]} is {getattr(self, name)}, but must be at least 1.")
        if self.virtual > 1 and self.pipeline == 1:
            raise CheckpointError(
                f"{_FLAGS['virtual']}: {self.virtual} model chunks need a pipeline of 2 ranks at least."
            )

    def check(self, shape: ModelShape) -> None:
        """Can `shape` be laid out in this way?

        Raises:
            CheckpointError: a size does not divide what it has to; names the flag and the numbers.
        """
        self.stage_sizes(shape.num_layers)
        heads, groups = shape.num_attention_heads, shape.num_query_groups
        if groups % self.tensor and self.tensor % groups:
            raise _refused(
                "tensor", self.tensor, f"must divide the {groups} key and value heads or be a multiple of them"
            )
        self._divides("tensor", heads, "attention heads")
        self._divides("tensor", (heads + 2 * groups) * shape.head_dim, "rows of queries, keys and values")
        if not shape.num_experts:
            self._divides("tensor", shape.ffn_hidden_size, "rows of the MLP (intermediate_size)")
            if self.expert != 1:
                raise _refused("expert", self.expert, "must be 1: the model has no experts")
            return
        self._divides("expert", shape.num_experts, "experts")
        self._divides("expert_tensor", shape.ffn_hidden_size, "rows of an expert (intermediate_size)")

    def _divides(self, name: str, number: int, what: str) -> None:
        if number % getattr(self, name):
            raise _refused(name, getattr(self, name), f"must divide the {number} {what}")

    def stage_sizes(self, num_layers: int) -> tuple[int, ...]:
        """Layers of each of the `pipeline * virtual` stages, in the order of the model.

        Stage `chunk * pipeline + rank` is chunk `chunk` of pipeline rank `rank`.

        Raises:
            CheckpointError: the layers cannot be dealt out as the flags say.
        """
        if self.stages is not None:
            if len(self.stages) != self.pipeline * self.virtual or sum(self.stages) != num_layers:
                raise CheckpointError(
                    f"A pipeline of {self.pipeline} ranks with {self.virtual} model chunks each needs as many stages, "
                    f"with {num_layers} layers in all; found stages of {', '.join(map(str, self.stages))} layers."
                )
            return self.stages
        ranks = self._rank_sizes(num_layers)
        for layers in set(ranks):
            if layers % self.virtual:
                raise CheckpointError(
                    f"{_FLAGS['virtual']}: the {self.virtual} model chunks of a rank cannot share its {layers} layers."
                )
        return tuple(layers // self.virtual for layers in ranks) * self.virtual

    def _rank_sizes(self, num_layers: int) -> list[int]:
        for name in ("first_layers", "last_layers"):
            layers = getattr(self, name)
            if layers is not None and (self.pipeline == 1 or not 0 < layers < num_layers):
                raise _refused(
                    name, layers, f"must be between 1 and {num_layers - 1}, in a pipeline of at least 2 ranks"
                )
        ends = {0: self.first_layers, self.pipeline - 1: self.last_layers}
        given = {rank: layers for rank, layers in ends.items() if layers is not None}
        if len(given) == self.pipeline and self.virtual > 1:
            why = "upstream cannot divide 2 ranks with model chunks by it; name only the first rank's"
            raise _refused("last_layers", self.last_layers or 0, why)
        middle, left = self.pipeline - len(given), num_layers - sum(given.values())
        if left < 0 or (left % middle if middle else left):
            rest = "the other " if given else ""
            raise _refused("pipeline", self.pipeline, f"{rest}{middle} ranks cannot share {left} layers evenly")
        return [given.get(rank, left // middle if middle else 0) for rank in range(self.pipeline)]

    def stage_layers(self, num_layers: int) -> list[range]:
        """The layers of each stage, in the order of the model."""
        ends = accumulate(self.stage_sizes(num_layers), initial=0)
        return [range(start, stop) for start, stop in pairwise(ends)]

    def layers(self, num_layers: int, pipeline_rank: int, chunk: int = 0) -> range:
        """The layers that one model chunk of one pipeline rank holds."""
        return self.stage_layers(num_layers)[chunk * self.pipeline + pipeline_rank]

    def experts(self, num_experts: int, expert_rank: int) -> range:
        """The experts that an expert rank holds."""
        local = num_experts // self.expert
        return range(expert_rank * local, (expert_rank + 1) * local)

    def ranks(self) -> Iterator[Rank]:
        """The different parts of the model that ranks hold, one for each file that format `torch` has.

        Tensor and expert ranks are numbered independently of each other: rank r of a stage is tensor rank
        `r % TP` and expert rank `(r // ETP) % EP`. Not every pair of them occurs.

        Raises:
            CheckpointError: the names of the files do not tell apart what different ranks hold.
        """
        if self.tensor % self.expert_tensor:
            raise _refused(
                "expert_tensor",
                self.expert_tensor,
                f"must divide the tensor parallel size, {self.tensor}, in format torch, whose file names do not tell "
                f"the others apart; choose --ckpt-format torch_dist",
            )
        pairs = {
            (rank % self.tensor, rank // self.expert_tensor % self.expert)
            for rank in range(math.lcm(self.tensor, self.expert_tensor * self.expert))
        }
        for pipeline in range(self.pipeline):
            for tensor, expert in sorted(pairs):
                yield Rank(tensor, pipeline, expert, tensor % self.expert_tensor)

    def folder(self, rank: Rank) -> str:
        """Upstream's name of the folder of a rank's file: mp_rank_TT[_PPP][_EEE]."""
        pipeline = f"_{rank.pipeline:03d}" if self.pipeline > 1 else ""
        expert = f"_{rank.expert:03d}" if self.expert > 1 else ""
        return f"mp_rank_{rank.tensor:02d}{pipeline}{expert}"


def virtual_stages(num_layers: int, pipeline: int, layers_per_stage: int | None) -> int:
    """The number of model chunks that `--num-layers-per-virtual-pipeline-stage` means; None: one.

    Raises:
        CheckpointError: the layers of a pipeline rank are no multiple of it.
    """
    if layers_per_stage is None:
        return 1
    (layers,) = set(Layout(pipeline=pipeline).stage_sizes(num_layers))
    if layers_per_stage < 1 or layers % layers_per_stage:
        raise _refused("virtual", layers_per_stage, f"must divide the {layers} layers of a pipeline rank")
    return layers // layers_per_stage


def _refused(name: str, found: int, why: str) -> CheckpointError:
    return CheckpointError(f"{_FLAGS[name]} {found}: {why}.")
