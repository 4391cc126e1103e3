"""The whole conversion: three ways, dtypes, vocabularies, the files beside the weights, verification, refusals."""

import hashlib
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ascend_patch.checkpoint import huggingface, megatron
from ascend_patch.checkpoint.convert import Options, convert
from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.shape import EMBEDDING, HEAD
from ascend_patch.checkpoint.verify import verify
from tests.unit_tests.checkpoint import small_models
from tests.unit_tests.checkpoint.rectangles import load
from tests.unit_tests.checkpoint.small_models import MISTRAL, MIXTRAL, Interrupting, flip


@pytest.fixture
def original(tmp_path) -> Path:
    return small_models.save(tmp_path / "original", MIXTRAL)


def back(folder: Path, save: Path, **options) -> Path:
    return convert(Options(folder, save, loads="megatron", saves="huggingface", **options))


def check_same(folder: Path, wanted: Path) -> None:
    found, expected = small_models.weights(folder), small_models.weights(wanted)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


@pytest.mark.parametrize("ckpt_format", ["torch", "torch_dist"])
@pytest.mark.parametrize(
    ("shape", "first", "second"),
    [
        (MIXTRAL, {"tensor": 2, "expert": 2, "make_vocab_size_divisible_by": 16}, {"pipeline": 2, "expert": 4}),
        (MISTRAL, {"pipeline": 2, "layers_per_virtual_stage": 1}, {"tensor": 2, "pipeline": 2, "first_layers": 3}),
    ],
)
def test_there_in_another_layout_and_back(shape, first, second, ckpt_format, tmp_path):
    original = small_models.save(tmp_path / "original", shape)
    one = convert(Options(original, tmp_path / "one", ckpt_format=ckpt_format, verify=True, **first))
    other = "torch" if ckpt_format == "torch_dist" else "torch_dist"
    two = convert(Options(one, tmp_path / "two", loads="megatron", ckpt_format=other, verify=True, **second))
    check_same(back(two, tmp_path / "back", verify=True), original)


def test_the_other_files_travel(original, tmp_path):
    one = convert(Options(original, tmp_path / "one"))
    kept = one / "huggingface"
    two = convert(Options(one, tmp_path / "two", loads="megatron", ckpt_format="torch"))
    result = back(two / "release", tmp_path / "back")
    names = {"config.json", "generation_config.json", "tokenizer.model", "tokenizer_config.json"}
    assert {file.name for file in kept.iterdir()} == names
    assert {file.name for file in result.iterdir()} == names | {"model.safetensors", "conversion.json"}
    for name in names:
        if name != "config.json":
            assert (result / name).read_bytes() == (original / name).read_bytes()
    assert json.loads((result / "config.json").read_text()) == json.loads((original / "config.json").read_text())


def test_a_tokenizer_from_elsewhere(original, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.json").write_text("{}")
    one = convert(Options(original, tmp_path / "one", tokenizer=other / "tokenizer.json"))
    assert {file.name for file in (one / "huggingface").iterdir()} == {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
    }
    with pytest.raises(CheckpointError, match="--tokenizer-model .*/nowhere does not exist"):
        convert(Options(original, tmp_path / "two", tokenizer=tmp_path / "nowhere"))


def test_back_into_the_folder_of_the_original(original, tmp_path):
    one = convert(Options(original, tmp_path / "one", tensor=2))
    shutil.rmtree(one / "huggingface")
    before = {file.name: file.read_bytes() for file in original.iterdir()}
    result = back(one, original)
    assert result == original / "mg2hg"
    check_same(result, original)
    assert (result / "tokenizer.model").exists()
    assert {file.name: file.read_bytes() for file in original.iterdir() if file.is_file()} == before


def test_back_without_any_config(original, tmp_path):
    """As from a training run of somebody else: config.json comes from the arguments."""
    one = convert(Options(original, tmp_path / "one", tensor=2, make_vocab_size_divisible_by=10))
    shutil.rmtree(one / "huggingface")
    progress = Interrupting()
    result = convert(Options(one, tmp_path / "back", loads="megatron", saves="huggingface"), progress)
    assert any("no config.json of the original model" in line and "--hf-folder" in line for line in progress.lines)
    assert huggingface.open(result).shape == replace(MIXTRAL, vocab_size=60)  # nobody knows that 7 are padding
    check_same(back(one, tmp_path / "true", true_vocab_size=MIXTRAL.vocab_size), original)
    check_same(back(one, tmp_path / "named", hf_folder=original), original)


def test_the_config_of_another_model_is_refused(original, tmp_path):
    one = convert(Options(original, tmp_path / "one"))
    other = small_models.save(tmp_path / "other", replace(MIXTRAL, num_layers=1))
    with pytest.raises(
        CheckpointError, match="is the file of another model: num_layers is 1 and the checkpoint's is 2"
    ):
        back(one, tmp_path / "back", hf_folder=other)
    with pytest.raises(CheckpointError, match="--hf-folder .* has no config.json"):
        back(one, tmp_path / "back", hf_folder=tmp_path)


@pytest.mark.parametrize(("name", "others"), [("torch_dtype", "dtype"), ("dtype", "torch_dtype")])
def test_the_config_tells_the_new_dtype(name, others, tmp_path):
    original = small_models.save(tmp_path / "original", MISTRAL, torch.float32)
    config = json.loads((original / "config.json").read_text())
    config.pop("torch_dtype")
    (original / "config.json").write_text(json.dumps(config | {name: "float32"}))
    one = convert(Options(original, tmp_path / "one", dtype=torch.bfloat16))
    result = back(one, tmp_path / "back")
    written = json.loads((result / "config.json").read_text())
    assert written[name] == "bfloat16" and others not in written
    for key, value in small_models.weights(original).items():
        assert torch.equal(small_models.weights(result)[key], value.bfloat16())


@pytest.mark.parametrize("ckpt_format", ["torch", "torch_dist"])
def test_further_tokens(ckpt_format, original, tmp_path):
    """Three are added, and padding to a multiple of 16; the way back keeps the three and leaves the padding."""
    options = Options(original, tmp_path / "one", tensor=2, ckpt_format=ckpt_format, extra_vocab_size=3)
    one = convert(replace(options, make_vocab_size_divisible_by=8, verify=True))
    assert megatron.open(one).shape.vocab_size == 64
    result = small_models.weights(back(one, tmp_path / "back"))
    for name in (EMBEDDING, HEAD):
        before = small_models.weights(original)[name]
        assert result[name].shape == (56, MIXTRAL.hidden_size)
        assert torch.equal(result[name][:53], before)
        assert torch.equal(result[name][53:], before.double().mean(0).bfloat16().expand(3, -1))


@pytest.mark.parametrize(("field", "flag"), [("num_experts", "--num-experts"), ("topk", "--moe-router-topk")])
def test_another_model_than_was_expected(field, flag, original, tmp_path):
    with pytest.raises(
        CheckpointError, match=rf"{flag} is 3, but the model in {original} has {getattr(MIXTRAL, field)}"
    ):
        convert(Options(original, tmp_path / "one", **{field: 3}))


def test_the_wrong_loader_is_told_the_right_one(original, tmp_path):
    with pytest.raises(CheckpointError, match=f"{original} holds a Hugging Face model: use --loader mixtral_hf"):
        back(original, tmp_path / "back")
    one = convert(Options(original, tmp_path / "one"))
    with pytest.raises(CheckpointError, match=f"{one} holds a checkpoint of Megatron-LM: use --loader mixtral_mg"):
        convert(Options(one, tmp_path / "two"))


def test_an_existing_output_is_not_touched(original, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "mine").write_text("mine")
    with pytest.raises(CheckpointError, match="one exists already"):
        convert(Options(original, tmp_path / "one"))
    assert (tmp_path / "one" / "mine").read_text() == "mine"


def test_what_is_not_finished_is_no_source(original, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        convert(Options(original, tmp_path / "one"), Interrupting(KeyboardInterrupt()))
    for folder in (tmp_path / "one.unfinished", tmp_path / "one.unfinished" / "release"):
        with pytest.raises(CheckpointError, match="is a conversion that was not finished"):
            back(folder, tmp_path / "back")


@pytest.mark.parametrize("ckpt_format", ["torch", "torch_dist"])
def test_any_byte_of_the_weights_counts(ckpt_format, original, tmp_path):
    options = Options(original, tmp_path / "one", tensor=2, expert=2, make_vocab_size_divisible_by=32)
    folder = convert(replace(options, ckpt_format=ckpt_format))
    verify(folder)
    opened = megatron.open(folder, vocab_size=MIXTRAL.vocab_size)
    everything = [(name, piece) for group in (opened.pieces, opened.fill) for name in group for piece in group[name]]
    for name, piece in random.sample(everything, 6):
        row, col = (random.randrange(size) for size in piece.size)
        position = piece.tensor.position(piece.at[0] + row, piece.at[1] + col) + random.randrange(2)
        flip(piece.tensor.file, position)
        with pytest.raises(CheckpointError, match=f"is damaged in 1 of {len(MIXTRAL.tensors())} tensors:\n  {name}: "):
            verify(folder)
        flip(piece.tensor.file, position)
    verify(folder)


def test_a_result_is_verified_when_it_is_there(original, tmp_path):
    folder = convert(Options(original, tmp_path / "one"))
    modified = (folder / "conversion.json").stat().st_mtime_ns
    progress = Interrupting()
    assert convert(Options(original, folder, verify=True), progress) == folder
    assert progress.bars == ["Verifying"]
    assert (folder / "conversion.json").stat().st_mtime_ns == modified
    with pytest.raises(
        CheckpointError, match="exists already, and is of another conversion: .*target tensor was 1 and is 2"
    ):
        convert(Options(original, folder, verify=True, tensor=2))


def test_only_conversions_can_be_verified(original):
    with pytest.raises(CheckpointError, match="conversion.json cannot be read: No such file"):
        verify(original)


def test_all_damage_is_told_at_once(original, tmp_path):
    folder = convert(Options(original, tmp_path / "one", ckpt_format="torch"))
    with (folder / "release" / "mp_rank_00" / "model_optim_rng.pt").open("r+b") as file:
        for pieces in megatron.open(folder).pieces.values():
            file.seek(pieces[0].tensor.position(*pieces[0].at))
            file.write(b"\1\2")
    count = len(MIXTRAL.tensors())
    with pytest.raises(CheckpointError) as error:
        verify(folder)
    lines = str(error.value).splitlines()
    assert f"damaged in {count} of {count} tensors" in lines[0]
    assert lines[11] == f"  and {count - 10} more."


def test_the_manifest(original, tmp_path):
    folder = convert(Options(original, tmp_path / "one", tensor=2, dtype=torch.float32))
    manifest = json.loads((folder / "conversion.json").read_text())
    assert manifest["source"] == {"type": "huggingface", "folder": str(original)}
    assert manifest["target"]["tensor"] == 2 and manifest["dtype"] == "float32"
    assert list(manifest["tensors"]) == list(MIXTRAL.tensors())
    for name, entry in manifest["tensors"].items():
        assert tuple(entry["shape"]) == MIXTRAL.tensors()[name]
        assert entry["source"] == ["model.safetensors"] and entry["dtype"] == "float32" and len(entry["sha256"]) == 64
    # The checksum is of the canonical tensor, whatever the layout.
    opened = megatron.open(folder)
    name = "model.layers.1.self_attn.q_proj.weight"
    found = load(opened.pieces[name], *MIXTRAL.tensors()[name])
    assert hashlib.sha256(found.numpy().tobytes()).hexdigest() == manifest["tensors"][name]["sha256"]
