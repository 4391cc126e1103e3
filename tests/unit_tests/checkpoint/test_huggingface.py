"""Folders of Hugging Face: every way to store the weights, strict in both directions, and new folders."""

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ascend_patch.checkpoint import huggingface
from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.shape import EMBEDDING, HEAD, ModelShape
from tests.unit_tests.checkpoint.evil import payloads
from tests.unit_tests.checkpoint.places import DTYPES, load, random_bits, same_bits, store

MIXTRAL = ModelShape(
    num_layers=2,
    hidden_size=20,
    ffn_hidden_size=28,
    num_attention_heads=4,
    num_query_groups=2,
    head_dim=6,
    vocab_size=97,
    num_experts=3,
    topk=2,
)
MISTRAL = dataclasses.replace(MIXTRAL, num_experts=0, topk=0, sliding_window=11)
NORM = "model.norm.weight"

type State = dict[str, torch.Tensor]


def state_of(shape: ModelShape, dtype: torch.dtype = torch.bfloat16) -> State:
    return {name: random_bits(size, dtype) for name, size in shape.tensors().items()}


def configure(folder: Path, shape: ModelShape) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape.to_hf(torch.bfloat16)))
    return folder


def write(folder: Path, state: State, suffix: str = "safetensors", shards: int = 1) -> dict[str, str]:
    """The weights in files as `save_pretrained` names them.

    Returns:
        The weight_map; with one shard it is not written.
    """
    stem, save = ("model", save_file) if suffix == "safetensors" else ("pytorch_model", torch.save)
    parts: list[State] = [{} for _ in range(shards)]
    for index, (name, value) in enumerate(state.items()):
        parts[index % shards][name] = value
    places = {}
    for number, part in enumerate(parts, 1):
        file = f"{stem}.{suffix}" if shards == 1 else f"{stem}-{number:05}-of-{shards:05}.{suffix}"
        save(part, folder / file)
        places |= dict.fromkeys(part, file)
    if shards > 1:
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return places


@pytest.fixture
def state() -> State:
    return state_of(MIXTRAL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return configure(tmp_path / "model", MIXTRAL)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [MIXTRAL, MISTRAL], ids=["mixtral", "mistral"])
@pytest.mark.parametrize(("suffix", "shards"), [("safetensors", 1), ("safetensors", 3), ("bin", 1), ("bin", 3)])
def test_weights_in_all_kinds_of_files(
    suffix: str, shards: int, shape: ModelShape, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder, state = configure(tmp_path / "model", shape), state_of(shape, dtype)
    names = list(state)
    random.shuffle(names)
    write(folder, {name: state[name] for name in names}, suffix, shards)
    checkpoint = huggingface.open(folder)
    assert (checkpoint.folder, checkpoint.shape, checkpoint.dtype) == (folder, shape, dtype)
    assert list(checkpoint.pieces) == list(shape.tensors())
    for name, (piece,) in checkpoint.pieces.items():
        assert same_bits(load(piece.tensor), state[name])
        assert (piece.rows, piece.cols, piece.at) == ((0, piece.tensor.rows), (0, piece.tensor.cols), (0, 0))
    assert checkpoint.nbytes == sum(value.nbytes for value in state.values())


@pytest.mark.parametrize("max_shard", [10**9, 5000, 1])
def test_a_new_folder(max_shard: int, state: State, folder: Path, tmp_path: Path) -> None:
    checkpoint = huggingface.create(folder, MIXTRAL, torch.bfloat16, max_shard=max_shard)
    for name, (piece,) in checkpoint.pieces.items():
        store(piece.tensor, state[name])
    files = sorted(folder.glob("*.safetensors"))
    loaded = [load_file(file) for file in files]
    assert all(same_bits(part[name], state[name]) for part in loaded for name in part)
    assert sum(map(len, loaded)) == len(state)
    assert all(len(part) == 1 or sum(value.nbytes for value in part.values()) <= max_shard for part in loaded)
    if len(files) == 1:
        assert files == [folder / "model.safetensors"] and max_shard == 10**9
    else:
        assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert index["weight_map"] == {
            name: file.name for file, part in zip(files, loaded, strict=True) for name in part
        }
        assert index["metadata"]["total_size"] == checkpoint.nbytes
    assert huggingface.open(folder).pieces == checkpoint.pieces


def test_files_there_are_left_as_they_are(state: State, folder: Path) -> None:
    write(folder, state)
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=r"model\.safetensors exists already"):
        huggingface.create(folder, MIXTRAL, torch.bfloat16)
    assert (folder / "model.safetensors").read_bytes() == before


def test_safetensors_are_preferred_to_pickles(state: State, folder: Path, tmp_path: Path) -> None:
    write(folder, state)
    torch.save(payloads(tmp_path / "trace")["system"][0], folder / "pytorch_model.bin")
    huggingface.open(folder)


@pytest.mark.parametrize("shards", [1, 2])
def test_code_in_a_pickle_is_refused_and_does_not_run(shards: int, state: State, folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    value, used = payloads(trace)["system"]
    write(folder, {**state, "extra": value}, "bin", shards)
    with pytest.raises(CheckpointError) as caught:
        huggingface.open(folder)
    assert "pytorch_model" in str(caught.value) and used in str(caught.value)
    assert not trace.exists()


def test_a_wider_tensor_widens_the_checkpoint(state: State, folder: Path) -> None:
    gate = "model.layers.1.block_sparse_moe.gate.weight"
    write(folder, {**state, gate: state[gate].float()})
    checkpoint = huggingface.open(folder)
    assert checkpoint.dtype == torch.float32
    assert checkpoint.pieces[gate][0].tensor.dtype == torch.float32
    assert checkpoint.pieces[NORM][0].tensor.dtype == torch.bfloat16


def test_a_tied_output_layer_is_a_replica(tmp_path: Path) -> None:
    shape = dataclasses.replace(MISTRAL, tied=True)
    folder, state = configure(tmp_path / "model", shape), state_of(shape)
    write(folder, state)
    assert len(huggingface.open(folder).pieces[EMBEDDING]) == 1
    (folder / "model.safetensors").unlink()
    write(folder, {**state, HEAD: state[EMBEDDING]}, "bin")
    checkpoint = huggingface.open(folder)
    embedding, head = checkpoint.pieces[EMBEDDING]
    assert embedding == head, "torch.save stores a shared tensor once"
    assert HEAD not in checkpoint.pieces


def test_buffers_of_old_releases_are_ignored(state: State, folder: Path) -> None:
    write(folder, {**state, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)})
    assert huggingface.open(folder).pieces.keys() == state.keys()


def drop(name: str) -> Callable[[State], object]:
    return lambda state: state.pop(name)


def add(name: str, value: torch.Tensor) -> Callable[[State], object]:
    return lambda state: state.update({name: value})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop(NORM), "Tensors missing: model.norm.weight"),
        (drop(HEAD), "missing: lm_head.weight"),
        (add("model.extra", torch.ones(3)), "Tensors left over: model.extra"),
        (add(NORM, torch.ones(21).bfloat16()), r"model\.norm\.weight \(21,\), not \(20,\)"),
        (add(NORM, torch.ones(1, 20).bfloat16()), r"model\.norm\.weight \(1, 20\), not \(20,\)"),
        (add(NORM, torch.ones(20).double()), r"of a dtype that is not .*: model\.norm\.weight torch\.float64"),
        (add(NORM, torch.ones(20).to(torch.float8_e4m3fn)), r"model\.norm\.weight torch\.float8_e4m3fn"),
        (add(NORM, torch.ones(20, dtype=torch.int64)), r"model\.norm\.weight torch\.int64"),
        (lambda state: [state.pop(name) for name in list(state)[:9]], r"missing: model\.embed_tokens.* and 4 more"),
    ],
)
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_the_tensors_must_be_those_of_the_configuration(
    edit: Callable[[State], object], message: str, suffix: str, state: State, folder: Path
) -> None:
    edit(state)
    write(folder, state, suffix)
    with pytest.raises(CheckpointError, match=message) as caught:
        huggingface.open(folder)
    assert str(folder) in str(caught.value)


def test_a_tensor_that_is_not_contiguous(state: State, folder: Path) -> None:
    state[EMBEDDING] = state[EMBEDDING].T.contiguous().T
    write(folder, state, "bin")
    with pytest.raises(CheckpointError, match="not contiguous tensors: model.embed_tokens.weight"):
        huggingface.open(folder)


def test_more_experts_than_the_configuration_says(folder: Path) -> None:
    write(folder, state_of(dataclasses.replace(MIXTRAL, num_experts=4)))
    with pytest.raises(CheckpointError, match="left over: .*experts.3.w1") as caught:
        huggingface.open(folder)
    assert "block_sparse_moe.gate.weight (4, 20), not (3, 20)" in str(caught.value)


def index_of(folder: Path) -> Path:
    return folder / "model.safetensors.index.json"


def test_an_index_that_names_absent_files(state: State, folder: Path) -> None:
    write(folder, state, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"files that are not there: model-00002-of-00003\.safetensors"):
        huggingface.open(folder)


def test_an_index_that_names_absent_tensors(state: State, folder: Path) -> None:
    places = write(folder, state, shards=3)
    index_of(folder).write_text(json.dumps({"weight_map": {**places, "ghost": places[NORM]}}))
    with pytest.raises(CheckpointError, match="names tensors that are not in their files: ghost"):
        huggingface.open(folder)


@pytest.mark.parametrize("lost", [True, False], ids=["not in the index", "in another file, too"])
def test_a_tensor_where_the_index_has_none(lost: bool, state: State, folder: Path) -> None:
    places = write(folder, state, shards=2)
    file = next(name for name in places.values() if lost == (name == places[NORM]))
    if lost:
        del places[NORM]
        index_of(folder).write_text(json.dumps({"weight_map": places}))
    else:
        save_file({**load_file(folder / file), NORM: state[NORM]}, folder / file)
    with pytest.raises(CheckpointError, match=rf"{file} holds model\.norm\.weight, but"):
        huggingface.open(folder)


@pytest.mark.parametrize(
    "content", [{}, {"weight_map": []}, {"weight_map": {NORM: 5}}, {"weight_map": {NORM: "../model.safetensors"}}]
)
def test_an_index_without_a_sound_map(content: dict, state: State, folder: Path) -> None:
    write(folder, state)
    index_of(folder).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"index\.json has no weight_map"):
        huggingface.open(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, r"config\.json cannot be read"),
        ("config.json", '{"model_type": ', r"config\.json is no JSON .*truncated"),
        ("config.json", "[]", r"config\.json holds a list"),
        ("config.json", '{"architectures": ["LlamaForCausalLM"]}', r"config\.json describes LlamaForCausalLM"),
        ("model.safetensors", None, "has no weights: .*Is the download complete"),
        ("model.safetensors", "version https://git-lfs.github.com/spec/v1\n", r"model\.safetensors has 43 bytes"),
    ],
)
def test_files_that_are_missing_or_damaged(
    file: str, content: str | None, message: str, state: State, folder: Path
) -> None:
    write(folder, state)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        huggingface.open(folder)
    assert str(folder) in str(caught.value)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no folder. Download the model first"):
        huggingface.open(tmp_path / "mistralai")


def test_a_pickle_that_holds_no_tensors(folder: Path) -> None:
    torch.save([torch.ones(3)], folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin holds a list"):
        huggingface.open(folder)
