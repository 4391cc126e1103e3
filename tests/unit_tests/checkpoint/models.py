"""Random shapes and layouts, and what Megatron-LM would hold of a model: full tensors, stacked and chunked with torch.

Nothing here uses `partition.py`. It follows how upstream defines its weights: `linear_qkv` has of each query group the
queries, the key and the value; `linear_fc1` of a rank has its part of the gate and then its part of the rest.
"""

from collections.abc import Iterator

import torch
from hypothesis import strategies as st

from ascend_patch.checkpoint.keys import Build
from ascend_patch.checkpoint.layout import Layout, Rank
from ascend_patch.checkpoint.shape import ModelShape


@st.composite
def laid_out(draw: st.DrawFn, dense: bool | None = None) -> tuple[ModelShape, Layout]:
    """A small model of odd sizes, and a layout that suits it."""
    small = st.integers(1, 3)
    tensor, expert, expert_tensor = draw(st.sampled_from((1, 2, 3, 4))), draw(small), draw(small)
    pipeline = draw(small)
    virtual = draw(small) if pipeline > 1 else 1
    if draw(st.booleans()):  # groups are dealt out whole, or are fewer than the ranks
        groups = tensor * draw(st.integers(1, 2))
        heads = groups * draw(small)
    else:
        groups = draw(st.sampled_from([n for n in (1, 2, 3, 4) if tensor % n == 0]))
        heads = tensor * draw(small)
    dim = draw(small) * (1 if groups % tensor == 0 else tensor)
    moe = draw(st.booleans()) if dense is None else not dense
    experts = expert * draw(small) if moe else 0
    stages, first, last = None, None, None
    match draw(st.sampled_from(("even", "uneven", "explicit"))):
        case "uneven" if pipeline > 1:
            first, last = virtual * draw(small), virtual * draw(small)
            layers = first + last + (pipeline - 2) * virtual * draw(small)
            if pipeline == 2 and virtual > 1:
                last = None
        case "explicit":
            stages = tuple(draw(st.integers(0, 2)) for _ in range(pipeline * virtual - 1))
            stages = (*stages, draw(small))
            layers = sum(stages)
        case _:
            layers = pipeline * virtual * draw(st.integers(1, 2))
    shape = ModelShape(
        num_layers=layers,
        hidden_size=draw(st.integers(1, 5)),
        ffn_hidden_size=(expert_tensor if moe else tensor) * draw(small),
        num_attention_heads=heads,
        num_query_groups=groups,
        head_dim=dim,
        vocab_size=draw(st.integers(1, 20)),
        num_experts=experts,
        topk=draw(st.integers(1, experts)) if experts else 0,
        tied=draw(st.booleans()),
    )
    layout = Layout(tensor, pipeline, expert if moe else 1, expert_tensor if moe else 0, virtual, first, last, stages)
    return shape, layout


def numbered(shape: ModelShape) -> dict[str, torch.Tensor]:
    """Canonical tensors in which no number occurs twice, nor 0."""
    found, start = {}, 1
    for name, size in shape.tensors().items():
        count = torch.Size(size).numel()
        found[name] = torch.arange(start, start + count, dtype=torch.float32).reshape(size)
        start += count
    assert start < 2**24  # float32 holds them
    return found


class Reference:
    """What each rank of Megatron-LM holds of the canonical tensors; padding of the vocabulary is 0."""

    def __init__(self, shape: ModelShape, layout: Layout, padded_vocab: int, tensors: dict[str, torch.Tensor]) -> None:
        self.shape, self.layout, self.padded_vocab, self.tensors = shape, layout, padded_vocab, tensors

    def layer(self, layer: int, rank: int) -> Iterator[tuple[str, torch.Tensor]]:
        """Name, with `--transformer-impl local`, and tensor of what a rank holds of a layer without its experts."""
        one = {name.removeprefix(f"model.layers.{layer}."): value for name, value in self.tensors.items()}
        size = self.layout.tensor
        yield "input_layernorm.weight", one["input_layernorm.weight"]
        yield "pre_mlp_layernorm.weight", one["post_attention_layernorm.weight"]
        q, k, v = (one[f"self_attn.{name}_proj.weight"] for name in "qkv")
        groups = [part.reshape(self.shape.num_query_groups, -1, self.shape.hidden_size) for part in (q, k, v)]
        qkv = torch.cat(groups, dim=1).reshape(-1, self.shape.hidden_size)
        yield "self_attention.linear_qkv.weight", qkv.chunk(size)[rank]
        yield "self_attention.linear_proj.weight", one["self_attn.o_proj.weight"].chunk(size, dim=1)[rank]
        if self.shape.num_experts:
            yield "mlp.router.weight", one["block_sparse_moe.gate.weight"]
        else:
            gate, up, down = (one[f"mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
            yield "mlp.linear_fc1.weight", torch.cat([gate.chunk(size)[rank], up.chunk(size)[rank]])
            yield "mlp.linear_fc2.weight", down.chunk(size, dim=1)[rank]

    def expert(self, layer: int, expert: int, rank: int) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and tensor of what expert tensor rank `rank` holds of an expert."""
        prefix, size = f"model.layers.{layer}.block_sparse_moe.experts.{expert}.", self.layout.expert_tensor
        w1, w2, w3 = (self.tensors[f"{prefix}w{number}.weight"] for number in (1, 2, 3))
        yield "linear_fc1.weight", torch.cat([w1.chunk(size)[rank], w3.chunk(size)[rank]])
        yield "linear_fc2.weight", w2.chunk(size, dim=1)[rank]

    def first(self, rank: int) -> Iterator[tuple[str, torch.Tensor]]:
        """What the first stage holds besides its layers."""
        yield "embedding.word_embeddings.weight", self._vocabulary("model.embed_tokens.weight", rank)

    def last(self, rank: int) -> Iterator[tuple[str, torch.Tensor]]:
        """What the last stage holds besides its layers."""
        yield "decoder.final_layernorm.weight", self.tensors["model.norm.weight"]
        if not self.shape.tied:
            yield "output_layer.weight", self._vocabulary("lm_head.weight", rank)
        elif self.layout.pipeline > 1:
            yield "output_layer.weight", self._vocabulary("model.embed_tokens.weight", rank)

    def _vocabulary(self, name: str, rank: int) -> torch.Tensor:
        rows = self.tensors[name]
        padding = torch.zeros(self.padded_vocab - len(rows), rows.shape[1])
        return torch.cat([rows, padding]).chunk(self.layout.tensor)[rank]


def state_dict(reference: Reference, rank: Rank, chunk: int, build: Build | None) -> dict[str, torch.Tensor]:
    """The state dict of a model chunk of a rank, under the names seen in checkpoints that upstream wrote.

    `build` None: experts as `GroupedMLP` had them up to release 0.16, in two tensors.
    """
    shape, layout = reference.shape, reference.layout
    stage, found = chunk * layout.pipeline + rank.pipeline, {}
    layers = layout.stage_layers(shape.num_layers)[stage]
    if stage == 0:
        found |= reference.first(rank.tensor)
    for number, layer in enumerate(layers):
        prefix = f"decoder.layers.{number}."
        for name, value in reference.layer(layer, rank.tensor):
            if build is None or build.transformer_impl == "transformer_engine":
                name = name.replace("input_layernorm.weight", "self_attention.linear_qkv.layer_norm_weight")
                if not shape.num_experts:
                    name = name.replace("pre_mlp_layernorm.weight", "mlp.linear_fc1.layer_norm_weight")
            found[prefix + name] = value
        found[prefix + "self_attention.linear_qkv._extra_state"] = None
        experts = layout.experts(shape.num_experts, rank.expert)
        parts = [dict(reference.expert(layer, expert, rank.expert_tensor)) for expert in experts]
        if build is None and parts:
            fc1, fc2 = (torch.stack([part[f"linear_fc{n}.weight"].T for part in parts]) for n in (1, 2))
            found[prefix + "mlp.experts.weight1"] = fc1.reshape(shape.hidden_size, -1)
            found[prefix + "mlp.experts.weight2"] = fc2.reshape(-1, shape.hidden_size)
            continue
        for expert, part in enumerate(parts):
            for name, value in part.items():
                name = f"{name}{expert}" if build.moe_grouped_gemm else f"local_experts.{expert}.{name}"
                found[f"{prefix}mlp.experts.{name}"] = value
    if stage == len(layout.stage_sizes(shape.num_layers)) - 1:
        found |= reference.last(rank.tensor)
    return {name: value if value is None else value.contiguous() for name, value in found.items()}
