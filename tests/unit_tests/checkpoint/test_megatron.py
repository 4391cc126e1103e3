"""Megatron-LM's checkpoints of both formats: plain torch reads what is laid out; what plain torch wrote is found."""

import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ascend_patch.checkpoint import arguments, megatron
from ascend_patch.checkpoint.arguments import padded_vocab_size
from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.keys import Build
from ascend_patch.checkpoint.layout import Layout
from ascend_patch.checkpoint.shape import ModelShape
from ascend_patch.checkpoint.stored import Checkpoint, Piece
from tests.unit_tests.checkpoint import places
from tests.unit_tests.checkpoint.models import Reference, laid_out, numbered, state_dict
from tests.unit_tests.checkpoint.rectangles import store

BUILDS = [Build(impl, grouped) for impl in ("transformer_engine", "local") for grouped in (True, False)]
SMALL = ModelShape(2, 6, 4, 4, 2, 3, 11, num_experts=4, topk=2)
FEW = settings(max_examples=10, deadline=None)


def rectangle(piece: Piece) -> torch.Tensor:
    """What lies at a piece, as it is in the canonical tensor."""
    matrix = places.load(piece.tensor).reshape(piece.tensor.rows, piece.tensor.cols)
    height, width = piece.size[::-1] if piece.transposed else piece.size
    part = matrix[piece.at[0] : piece.at[0] + height, piece.at[1] : piece.at[1] + width]
    return part.T if piece.transposed else part


def check(found: Checkpoint, shape: ModelShape, tensors: dict[str, torch.Tensor]) -> None:
    """The pieces hold the model, and cover it."""
    assert found.shape == shape and found.dtype == torch.float32
    assert found.pieces.keys() == tensors.keys()
    for name, tensor in tensors.items():
        matrix = tensor.reshape(-1, tensor.shape[-1])
        covered = torch.zeros_like(matrix, dtype=torch.bool)
        for piece in found.pieces[name]:
            place = slice(*piece.rows), slice(*piece.cols)
            assert torch.equal(rectangle(piece), matrix[place]), (name, piece)
            covered[place] = True
        assert covered.all(), name
    assert not any(rectangle(piece).any() for pieces in found.fill.values() for piece in pieces)


def lay_out(folder: Path, case: tuple[ModelShape, Layout], **options) -> tuple[Reference, Checkpoint]:
    """A new checkpoint with numbered tensors in it."""
    shape, layout = case
    tensors = numbered(shape)
    padded = padded_vocab_size(shape.vocab_size, 3, layout.tensor)
    checkpoint = megatron.create(folder, shape, layout, torch.float32, padded_vocab=padded, **options)
    for name, tensor in tensors.items():
        for piece in checkpoint.pieces[name]:
            store(tensor.reshape(-1, tensor.shape[-1]), piece)
    megatron.finish(folder)
    return Reference(shape, layout, padded, tensors), checkpoint


def written(folder: Path, case: tuple[ModelShape, Layout], build: Build | None) -> Reference:
    """As upstream writes format `torch`, with plain torch."""
    shape, layout = case
    padded = padded_vocab_size(shape.vocab_size, 3, layout.tensor)
    reference = Reference(shape, layout, padded, numbered(shape))
    args = arguments.write(shape, layout, padded, torch.float32, build or Build(), "torch")
    for rank in layout.ranks():
        models = {
            f"model{chunk}" if layout.virtual > 1 else "model": state_dict(reference, rank, chunk, build)
            for chunk in range(layout.virtual)
        }
        file = folder / "iter_0000007" / layout.folder(rank) / "model_optim_rng.pt"
        file.parent.mkdir(parents=True)
        state = {"args": args, "iteration": 7, "optimizer": {"exp_avg": torch.ones(3)}, "rng_state": [{"np": b"x"}]}
        models = {
            name: {key: one if one is None else one.contiguous() for key, one in model.items()}
            for name, model in models.items()
        }
        torch.save(state | models, file)
    (folder / "latest_checkpointed_iteration.txt").write_text("7")
    return reference


@FEW
@given(laid_out(), st.sampled_from(BUILDS))
def test_upstream_would_read_what_is_laid_out_in_format_torch(case, build):
    shape, layout = case
    assume(layout.tensor % layout.expert_tensor == 0)
    with tempfile.TemporaryDirectory() as folder:
        reference, _ = lay_out(Path(folder), case, checkpoint_format="torch", build=build)
        for rank in layout.ranks():
            file = Path(folder, "release", layout.folder(rank), "model_optim_rng.pt")
            state = torch.load(file, weights_only=False)
            assert (state["checkpoint_version"], state["iteration"]) == (3.0, 0)
            for chunk in range(layout.virtual):
                found = state[f"model{chunk}" if layout.virtual > 1 else "model"]
                wanted = state_dict(reference, rank, chunk, build)
                assert found.keys() == {name for name, value in wanted.items() if value is not None}
                assert all(torch.equal(value, wanted[name]) for name, value in found.items())
        check(megatron.open(Path(folder), vocab_size=shape.vocab_size), shape, reference.tensors)


@FEW
@given(laid_out(), st.sampled_from([*BUILDS, None]))
def test_what_upstream_wrote_in_format_torch_is_found(case, build):
    shape, layout = case
    assume(layout.tensor % layout.expert_tensor == 0)
    with tempfile.TemporaryDirectory() as folder:
        reference = written(Path(folder), case, build)
        check(megatron.open(Path(folder), vocab_size=shape.vocab_size), shape, reference.tensors)


@FEW
@given(laid_out())
def test_upstream_would_read_what_is_laid_out_in_format_torch_dist(case):
    shape, layout = case
    with tempfile.TemporaryDirectory() as folder:
        reference, _ = lay_out(Path(folder), case, checkpoint_format="torch_dist")
        reader = dcp.FileSystemReader(Path(folder, "release"))
        metadata = reader.read_metadata().state_dict_metadata
        found = {key: torch.full(entry.size, -1.0) for key, entry in metadata.items() if hasattr(entry, "size")}
        dcp.load(found, storage_reader=reader, no_dist=True)
        whole = Reference(shape, Layout(), reference.padded_vocab, reference.tensors)
        wanted = stacked(whole)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(value, wanted[key]) for key, value in found.items())
        check(megatron.open(Path(folder), vocab_size=shape.vocab_size), shape, reference.tensors)


def stacked(whole: Reference) -> dict[str, torch.Tensor]:
    """The global tensors of format `torch_dist`, under the keys seen in checkpoints that upstream wrote."""
    shape = whole.shape
    found = dict(whole.first(0)) | dict(whole.last(0))
    layers = [dict(whole.layer(layer, 0)) for layer in range(shape.num_layers)]
    for name in layers[0]:
        keys = {
            "input_layernorm.weight": ["self_attention.linear_qkv.layer_norm_weight"],
            # TransformerEngine's models and local ones have different keys for the norm before experts.
            "pre_mlp_layernorm.weight": ["pre_mlp_layernorm.weight"] * bool(shape.num_experts)
            + ["mlp.linear_fc1.layer_norm_weight"],
        }.get(name, [name])
        found |= {f"decoder.layers.{key}": torch.stack([layer[name] for layer in layers]) for key in keys}
    if shape.num_experts:
        experts = [
            [dict(whole.expert(layer, expert, 0)) for expert in range(shape.num_experts)]
            for layer in range(shape.num_layers)
        ]
        for name in experts[0][0]:
            tensors = [torch.stack([expert[name] for expert in layer]) for layer in experts]
            found[f"decoder.layers.mlp.experts.experts.{name}"] = torch.stack(tensors)
    return found


def damage(folder: Path, change) -> None:
    """Apply `change` to the state in the only file of a checkpoint of format `torch`."""
    (file,) = folder.glob("*/mp_rank_*/*.pt")
    state = torch.load(file, weights_only=False)
    change(state)
    torch.save(state, file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s["model"].pop("decoder.layers.1.mlp.router.weight"),
            r"missing: mp_rank_00/.*layers\.1\.mlp\.router",
        ),
        (
            lambda s: s["model"].pop("decoder.layers.0.mlp.experts.linear_fc1.weight3"),
            r"missing: .*linear_fc1\.weight3",
        ),
        (lambda s: s["model"].update(odd=torch.ones(2)), "left over: mp_rank_00/.*odd"),
        (
            lambda s: s["model"].update({"decoder.layers.0.mlp.experts.linear_fc2.weight4": torch.ones(6, 4)}),
            r"left over: .*linear_fc2\.weight4",
        ),
        (
            lambda s: s["model"].update({"output_layer.weight": torch.ones(12, 5)}),
            r"output_layer\.weight \(12, 5\), not \(12, 6\)",
        ),
        (
            lambda s: s["model"].update({"decoder.final_layernorm.weight": torch.ones(6, dtype=torch.int32)}),
            "of a dtype that is not .*final_layernorm.* torch.int32",
        ),
        (
            lambda s: s["model"].update({"decoder.layers.0.mlp.router.weight": torch.ones(6, 4).T}),
            "no contiguous tensors: .*router",
        ),
        (lambda s: setattr(s["args"], "num_attention_heads", 6), r"linear_qkv\.weight \(24, 6\), not \(30, 6\)"),
        (lambda s: setattr(s["args"], "num_attention_heads", 5), "5 attention heads cannot share 2"),
        (lambda s: setattr(s["args"], "num_experts", 8), r"router\.weight \(4, 6\), not \(8, 6\)"),
        (lambda s: setattr(s["args"], "num_layers", 3), r"missing: .*layers\.2\."),
        (lambda s: setattr(s["args"], "normalization", "LayerNorm"), "normalization = 'LayerNorm'.* have 'RMSNorm'"),
        (lambda s: delattr(s["args"], "hidden_size"), "lacks hidden_size"),
        (lambda s: s.pop("args"), "has no args"),
        (lambda s: s.pop("model"), "missing: .*word_embeddings"),
        (lambda s: setattr(s["args"], "tensor_model_parallel_size", 2), "mp_rank_01 is missing"),
        (lambda s: setattr(s["args"], "pipeline_model_parallel_size", 2), "mp_rank_00_001 is missing"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, message):
    written(tmp_path, (SMALL, Layout()), Build())
    megatron.open(tmp_path)
    damage(tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        megatron.open(tmp_path)


def test_a_part_that_is_missing_or_left_over_is_named(tmp_path):
    written(tmp_path, (SMALL, Layout(2, 2)), Build())
    part = tmp_path / "iter_0000007" / "mp_rank_01_001"
    part.rename(part.with_name("mp_rank_01_002"))
    with pytest.raises(CheckpointError, match="mp_rank_01_001 is missing.*mp_rank_01_002 is not one of them"):
        megatron.open(tmp_path)


def test_the_iteration(tmp_path):
    written(tmp_path, (SMALL, Layout()), Build())
    (tmp_path / "iter_0000003").mkdir()
    assert megatron.find(tmp_path).name == "iter_0000007"
    assert megatron.find(tmp_path, 3).name == "iter_0000003"
    assert megatron.find(tmp_path / "iter_0000007").name == "iter_0000007"
    with pytest.raises(CheckpointError, match="no iter_0000004. It has iter_0000003, iter_0000007: see --ckpt"):
        megatron.find(tmp_path, 4)
    with pytest.raises(CheckpointError, match="has no mp_rank_"):
        megatron.open(tmp_path, step=3)
    tracker = tmp_path / "latest_checkpointed_iteration.txt"
    tracker.write_text("release\n")
    with pytest.raises(CheckpointError, match="has no release"):
        megatron.find(tmp_path)
    tracker.write_text("")
    with pytest.raises(CheckpointError, match="should hold the number of an iteration"):
        megatron.find(tmp_path)
    tracker.unlink()
    with pytest.raises(CheckpointError, match="no checkpoint of Megatron-LM"):
        megatron.find(tmp_path)
    with pytest.raises(CheckpointError, match="is no folder"):
        megatron.find(tmp_path / "absent")


def rewrite(folder: Path, change) -> None:
    """Write a checkpoint of format `torch_dist` anew, its tensors and its common state changed."""
    iteration = folder / "release"
    metadata = dcp.FileSystemReader(iteration).read_metadata().state_dict_metadata
    tensors = {key: torch.empty(entry.size) for key, entry in metadata.items() if hasattr(entry, "size")}
    common = torch.load(iteration / "common.pt", weights_only=False)
    change(tensors, common["args"])
    for file in iteration.iterdir():
        file.unlink()
    dcp.save(tensors, checkpoint_id=iteration, no_dist=True)
    torch.save(common, iteration / "common.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, a: t.pop("decoder.layers.mlp.router.weight"), r"missing: decoder\.layers\.mlp\.router\.weight\."),
        (lambda t, a: t.update({"decoder.layers.bias": torch.ones(2)}), r"left over: decoder\.layers\.bias"),
        (lambda t, a: t.update({"output_layer.weight": torch.ones(12, 5)}), r"output_layer\.weight \(12, 5\), not"),
        (lambda t, a: setattr(a, "num_experts", 8), r"linear_fc1\.weight \(2, 4, 8, 6\), not \(2, 8, 8, 6\)"),
        (lambda t, a: setattr(a, "num_layers", 4), r"layer_norm_weight \(2, 6\), not \(4, 6\)"),
    ],
)
def test_what_is_wrong_in_format_torch_dist_is_named(tmp_path, change, message):
    lay_out(tmp_path, (SMALL, Layout()), checkpoint_format="torch_dist")
    rewrite(tmp_path, lambda tensors, args: tensors.update({"optimizer.state.exp_avg.odd": torch.ones(2)}))
    megatron.open(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        megatron.open(tmp_path)


def test_layers_may_have_keys_of_their_own(tmp_path):
    """As upstream writes them with `--moe-layer-freq` and a list."""
    reference, _ = lay_out(tmp_path, (SMALL, Layout()), checkpoint_format="torch_dist")

    def per_layer(tensors, args):
        for key in [key for key in tensors if key.startswith("decoder.layers.")]:
            for layer, value in enumerate(tensors.pop(key)):
                tensors[key.replace("layers.", f"layers.{layer}.")] = value

    def numbers(tensors, args):
        tensors.update(stacked(reference))
        args.moe_layer_freq = [1, 1]
        per_layer(tensors, args)

    rewrite(tmp_path, numbers)
    check(megatron.open(tmp_path, vocab_size=SMALL.vocab_size), SMALL, reference.tensors)
    rewrite(tmp_path, lambda tensors, args: tensors.pop("decoder.layers.1.mlp.router.weight"))
    with pytest.raises(CheckpointError, match=r"missing: decoder\.layers\.1\.mlp\.router\.weight\."):
        megatron.open(tmp_path)


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        (Layout(), {"padded_vocab": 10}, "cannot have 10 rows: it needs the 11 of the vocabulary"),
        (Layout(2), {"padded_vocab": 13}, "a multiple of the tensor parallel size, 2"),
        (Layout(), {"checkpoint_format": "zarr"}, "--ckpt-format is 'zarr'; it must be torch or torch_dist"),
        (Layout(1, expert_tensor=2), {"checkpoint_format": "torch"}, "choose --ckpt-format torch_dist"),
        (Layout(expert=3), {}, "--target-expert-parallel-size 3: must divide the 4 experts"),
    ],
)
def test_nothing_is_laid_out_that_cannot_be(tmp_path, layout, options, message):
    with pytest.raises(CheckpointError, match=message):
        megatron.create(tmp_path, SMALL, layout, torch.float32, **{"padded_vocab": 12, **options})
    assert not list(tmp_path.rglob("*.pt"))


def test_a_tracker_makes_it_a_checkpoint(tmp_path):
    megatron.create(tmp_path, SMALL, Layout(), torch.bfloat16, padded_vocab=12)
    with pytest.raises(CheckpointError, match="no checkpoint of Megatron-LM"):
        megatron.open(tmp_path)
    megatron.finish(tmp_path)
    found = megatron.open(tmp_path, vocab_size=11)
    assert found.dtype == torch.bfloat16
    assert [piece.rows for piece in found.fill["lm_head.weight"]] == [(11, 12)]
    assert megatron.open(tmp_path).shape.vocab_size == 12
    with pytest.raises(CheckpointError, match="the vocabulary has 13 tokens, but the embedding 12 rows"):
        megatron.open(tmp_path, vocab_size=13)
