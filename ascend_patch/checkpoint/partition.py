"""Which rectangles of the canonical tensors the tensors of Megatron-LM's model consist of. Arithmetic, no files.

A parameter of Megatron-LM is a stack of runs of rows of canonical tensors. Tensor parallelism deals out blocks of its
rows or columns. So any shard, of whatever layout, is a few rectangles.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from ascend_patch.checkpoint.layout import Layout
from ascend_patch.checkpoint.shape import EMBEDDING, FINAL_NORM, HEAD, ModelShape

FUSED_INPUT_NORM = "self_attention.linear_qkv.layer_norm_weight"
FUSED_MLP_NORM = "mlp.linear_fc1.layer_norm_weight"

Span = tuple[int, int]
"""Start and stop."""


class Split(Enum):
    """What tensor parallelism deals out."""

    NOTHING = "replicated"
    ROWS = "column parallel"
    GATED = "column parallel, each half for itself"
    """A rank holds its part of the first half of the rows and then its part of the second half."""
    COLS = "row parallel"


@dataclass(frozen=True)
class Run:
    """Consecutive rows of a canonical tensor."""

    name: str
    rows: Span


@dataclass(frozen=True)
class Rectangle:
    """A rectangle of a canonical tensor, and where it lies in a tensor of Megatron-LM's."""

    name: str
    rows: Span
    cols: Span
    at: tuple[int, int]


@dataclass(frozen=True)
class Block:
    """A rectangle of a parameter."""

    rows: Span
    cols: Span

    @property
    def size(self) -> tuple[int, int]:
        return self.rows[1] - self.rows[0], self.cols[1] - self.cols[0]


@dataclass(frozen=True)
class Parameter:
    """A parameter of Megatron-LM's model before it is dealt out."""

    name: str
    """In the module of its layer (or of its expert), or in the model, with `--transformer-impl local`."""
    runs: tuple[Run, ...]
    cols: int
    split: Split = Split.NOTHING
    vector: bool = False
    layer: int | None = None
    expert: int | None = None
    fused: str | None = None
    """Its name with `--transformer-impl transformer_engine`, where a norm is kept with the linear layer after it."""

    @property
    def rows(self) -> int:
        return sum(stop - start for start, stop in (run.rows for run in self.runs))

    @property
    def whole(self) -> Block:
        return Block((0, self.rows), (0, self.cols))

    def shape(self, rows: int, cols: int) -> tuple[int, ...]:
        """Of a tensor that holds so many rows and columns of it."""
        return (cols,) if self.vector else (rows, cols)

    def blocks(self, rank: int, size: int) -> tuple[Block, ...]:
        """What rank `rank` of `size` tensor ranks holds, one block below the other."""
        rows, cols = (0, self.rows), (0, self.cols)
        match self.split:
            case Split.NOTHING:
                return (Block(rows, cols),)
            case Split.ROWS:
                return (Block(_part(rows, rank, size), cols),)
            case Split.COLS:
                return (Block(rows, _part(cols, rank, size)),)
            case Split.GATED:
                half = self.rows // 2
                return tuple(Block(_part(rows, rank, size), cols) for rows in ((0, half), (half, self.rows)))

    def rectangles(self, *blocks: Block) -> Iterator[Rectangle]:
        """The canonical rectangles in a tensor that holds these blocks, one below the other."""
        row = 0
        for block in blocks:
            start = 0
            for run in self.runs:
                # In rows of the parameter, the run is at `start`; take what the block has of it.
                stop = start + run.rows[1] - run.rows[0]
                top, bottom = max(start, block.rows[0]), min(stop, block.rows[1])
                if top < bottom:
                    rows = (run.rows[0] + top - start, run.rows[0] + bottom - start)
                    yield Rectangle(run.name, rows, block.cols, (row + top - block.rows[0], 0))
                start = stop
            row += block.size[0]


@dataclass(frozen=True)
class Shard:
    """What one rank holds of a parameter."""

    parameter: Parameter
    blocks: tuple[Block, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parameter.shape(sum(block.size[0] for block in self.blocks), self.blocks[0].size[1])

    def rectangles(self) -> Iterator[Rectangle]:
        """The canonical rectangles in the rank's tensor."""
        return self.parameter.rectangles(*self.blocks)


def first_stage(shape: ModelShape, padded_vocab: int) -> list[Parameter]:
    """What the first pipeline stage holds besides its layers."""
    return [_vocabulary("embedding.word_embeddings.weight", EMBEDDING, shape, padded_vocab)]


def last_stage(shape: ModelShape, padded_vocab: int, *, pipeline: int) -> list[Parameter]:
    """What the last pipeline stage holds besides its layers.

    With tied weights in a pipeline, the output layer of the last stage is a copy of the embedding.
    """
    norm = Parameter("decoder.final_layernorm.weight", (Run(FINAL_NORM, (0, 1)),), shape.hidden_size, vector=True)
    if shape.tied and pipeline == 1:
        return [norm]
    head = EMBEDDING if shape.tied else HEAD
    return [norm, _vocabulary("output_layer.weight", head, shape, padded_vocab)]


def layer_parameters(shape: ModelShape, layer: int) -> list[Parameter]:
    """The parameters of a layer, without those of its experts."""
    hidden, prefix, moe = shape.hidden_size, f"model.layers.{layer}.", bool(shape.num_experts)
    values = shape.num_attention_heads * shape.head_dim

    def norm(name: str, canonical: str, fused: str | None) -> Parameter:
        return Parameter(name, (Run(prefix + canonical, (0, 1)),), hidden, vector=True, layer=layer, fused=fused)

    qkv = tuple(_query_key_value(shape, prefix + "self_attn."))
    projection = (Run(prefix + "self_attn.o_proj.weight", (0, hidden)),)
    found = [
        norm("input_layernorm.weight", "input_layernorm.weight", FUSED_INPUT_NORM),
        Parameter("self_attention.linear_qkv.weight", qkv, hidden, Split.ROWS, layer=layer),
        Parameter("self_attention.linear_proj.weight", projection, values, Split.COLS, layer=layer),
        norm("pre_mlp_layernorm.weight", "post_attention_layernorm.weight", None if moe else FUSED_MLP_NORM),
    ]
    if moe:
        router = (Run(prefix + "block_sparse_moe.gate.weight", (0, shape.num_experts)),)
        return [*found, Parameter("mlp.router.weight", router, hidden, layer=layer)]
    names = [f"{prefix}mlp.{name}_proj.weight" for name in ("gate", "up", "down")]
    return [*found, *_mlp(shape, "mlp.", names, layer)]


def expert_parameters(shape: ModelShape, layer: int, expert: int) -> list[Parameter]:
    """The two parameters of an expert."""
    names = [f"model.layers.{layer}.block_sparse_moe.experts.{expert}.w{i}.weight" for i in (1, 3, 2)]
    return _mlp(shape, "", names, layer, expert)


def dense_shards(shape: ModelShape, layout: Layout, padded_vocab: int, stage: int, rank: int) -> Iterator[Shard]:
    """What tensor rank `rank` holds of a stage, without its experts.

    Args:
        padded_vocab: rows of the embedding, a multiple of the tensor parallel size.
        stage: in the order of the model: `chunk * pipeline size + pipeline rank`.
    """
    stages = layout.stage_layers(shape.num_layers)
    parameters = first_stage(shape, padded_vocab) if stage == 0 else []
    for layer in stages[stage]:
        parameters += layer_parameters(shape, layer)
    if stage == len(stages) - 1:
        parameters += last_stage(shape, padded_vocab, pipeline=layout.pipeline)
    return _dealt(parameters, rank, layout.tensor)


def expert_shards(shape: ModelShape, layout: Layout, stage: int, expert: int, rank: int) -> Iterator[Shard]:
    """What expert rank `expert` and expert tensor rank `rank` hold of the experts of a stage."""
    for layer in layout.stage_layers(shape.num_layers)[stage]:
        for number in layout.experts(shape.num_experts, expert):
            yield from _dealt(expert_parameters(shape, layer, number), rank, layout.expert_tensor)


def _dealt(parameters: list[Parameter], rank: int, size: int) -> Iterator[Shard]:
    for parameter in parameters:
        yield Shard(parameter, parameter.blocks(rank, size))


def _part(span: Span, rank: int, size: int) -> Span:
    start, length = span[0], (span[1] - span[0]) // size
    return start + rank * length, start + (rank + 1) * length


def _vocabulary(name: str, canonical: str, shape: ModelShape, padded_vocab: int) -> Parameter:
    return Parameter(name, (Run(canonical, (0, padded_vocab)),), shape.hidden_size, Split.ROWS)


def _mlp(shape: ModelShape, prefix: str, names: list[str], layer: int, expert: int | None = None) -> list[Parameter]:
    hidden, ffn = shape.hidden_size, shape.ffn_hidden_size
    gate, up, down = names
    fc1, fc2 = (Run(gate, (0, ffn)), Run(up, (0, ffn))), (Run(down, (0, hidden)),)
    return [
        Parameter(f"{prefix}linear_fc1.weight", fc1, hidden, Split.GATED, layer=layer, expert=expert),
        Parameter(f"{prefix}linear_fc2.weight", fc2, ffn, Split.COLS, layer=layer, expert=expert),
    ]


def _query_key_value(shape: ModelShape, prefix: str) -> Iterator[Run]:
    """Of each group its query heads, its key head and its value head."""
    heads, dim = shape.num_attention_heads // shape.num_query_groups, shape.head_dim
    for group in range(shape.num_query_groups):
        yield Run(f"{prefix}q_proj.weight", (group * heads * dim, (group + 1) * heads * dim))
        yield Run(f"{prefix}k_proj.weight", (group * dim, (group + 1) * dim))
        yield Run(f"{prefix}v_proj.weight", (group * dim, (group + 1) * dim))
