"""Bad input: an exit code, a message that names tensor, file or flag, no output, and the source as it was."""

import errno
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.system_tests import hugging_face
from tests.system_tests.checkpoints import check_identical, tensors
from tools.checkpoint import util

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face model in several shards."""
    model = hugging_face.random_model(**hugging_face.MIXTRAL)
    return hugging_face.save(model, tmp_path_factory.mktemp("whole"), torch.bfloat16, max_shard_size="200KB")


@pytest.fixture
def source(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    return shutil.copytree(whole, tmp_path / "source")


@pytest.fixture(scope="module", params=["torch", "torch_dist"])
def whole_megatron(whole: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("megatron") / request.param
    layout = ["--target-tensor-parallel-size", "2", "--target-expert-parallel-size", "2"]
    assert run("mixtral_hf", whole, folder, *layout, "--ckpt-format", request.param) == 0
    return folder


@pytest.fixture
def megatron(whole_megatron: Path, tmp_path: Path) -> Path:
    """A Megatron-LM checkpoint in the layout TP2 EP2, to be spoilt."""
    return shutil.copytree(whole_megatron, tmp_path / "megatron")


def run(loader: str, load: Path, save: Path, *arguments: str) -> int:
    return util.main(["--loader", loader, "--load-dir", str(load), "--save-dir", str(save), *arguments])


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """refused(loader, source, *arguments): what the command said; it failed and left everything as it was."""

    def refuse(loader: str, load: Path, *arguments: str) -> str:
        before, save = fingerprint(load), tmp_path / "new" / "result"
        capsys.readouterr()
        try:
            code = run(loader, load, save, *arguments)
        except SystemExit as end:
            code = int(end.code or 0)
            assert code == 2
        message = capsys.readouterr().err
        assert code in (1, 2), message
        assert "Traceback" not in message
        assert not save.exists()
        assert fingerprint(load) == before
        return message

    return refuse


def fingerprint(folder: Path) -> dict[Path, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def shard_with(folder: Path, name: str) -> Path:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return folder / index["weight_map"][name]


def change_config(folder: Path, **changes: object) -> None:
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))


W2 = "model.layers.2.block_sparse_moe.experts.5.w2.weight"


def test_a_truncated_shard(source: Path, refused: Refused) -> None:
    shard = shard_with(source, W2)
    os.truncate(shard, shard.stat().st_size - 1)
    assert shard.name in refused("mixtral_hf", source)


def test_a_shard_without_its_header(source: Path, refused: Refused) -> None:
    shard = shard_with(source, W2)
    os.truncate(shard, 5)
    assert shard.name in refused("mixtral_hf", source)


def test_an_index_that_names_an_absent_file(source: Path, refused: Refused) -> None:
    shard = shard_with(source, W2)
    shard.unlink()
    message = refused("mixtral_hf", source)
    assert shard.name in message


def test_a_missing_tensor(source: Path, refused: Refused) -> None:
    rewrite(source, lambda name, tensor: None if name == W2 else tensor)
    assert W2 in refused("mixtral_hf", source)


def test_a_tensor_that_is_left_over(source: Path, refused: Refused) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    rewrite(source, lambda _, tensor: tensor, **{name: torch.zeros(3)})
    assert name in refused("mixtral_hf", source)


def test_a_tensor_of_a_wrong_shape(source: Path, refused: Refused) -> None:
    rewrite(source, lambda name, tensor: tensor[:-1].clone() if name == W2 else tensor)
    message = refused("mixtral_hf", source)
    assert W2 in message
    assert "47" in message and "48" in message


def rewrite(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor | None], **more: torch.Tensor) -> None:
    """Replace the weights by what ``change`` makes of them, in one file."""
    changed = {name: change(name, tensor) for name, tensor in tensors(folder).items()} | more
    for file in folder.glob("model*"):
        file.unlink()
    kept = {name: tensor.contiguous() for name, tensor in changed.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_attention_heads": 4}, "q_proj"),
        ({"num_key_value_heads": 2}, "k_proj"),
        ({"hidden_size": 64}, "64"),
        ({"num_hidden_layers": 5}, "model.layers.4."),
        ({"num_hidden_layers": 3}, "model.layers.3."),
        ({"num_local_experts": 9}, "experts.8."),
        ({"vocab_size": 300}, "embed_tokens"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_config_of_another_model(source: Path, refused: Refused, changes: dict, named: str) -> None:
    change_config(source, **changes)
    assert named in refused("mixtral_hf", source)


def test_an_unknown_architecture(source: Path, refused: Refused) -> None:
    change_config(source, architectures=["LlamaForCausalLM"], model_type="llama")
    message = refused("mixtral_hf", source)
    assert "LlamaForCausalLM" in message or "llama" in message
    assert "Mixtral" in message


def test_no_config(source: Path, refused: Refused) -> None:
    (source / "config.json").unlink()
    assert "config.json" in refused("mixtral_hf", source)


def test_no_such_folder(tmp_path: Path, refused: Refused) -> None:
    assert "absent" in refused("mixtral_hf", tmp_path / "absent")
    assert "absent" in refused("mixtral_mg", tmp_path / "absent")


@pytest.mark.parametrize(
    ("flag", "size", "numbers"),
    [
        ("--target-tensor-parallel-size", "3", "8"),
        ("--target-tensor-parallel-size", "16", "8"),
        ("--target-expert-parallel-size", "3", "8"),
        ("--target-expert-tensor-parallel-size", "3", "80"),
        ("--target-pipeline-parallel-size", "3", "4"),
        ("--target-pipeline-parallel-size", "8", "4"),
        ("--target-decoder-first-pipeline-num-layers", "4", "3"),
        ("--target-num-layers-per-virtual-pipeline-stage", "3", "4"),
        ("--target-tensor-parallel-size", "0", "1"),
        ("--target-tensor-parallel-size", "two", "two"),
    ],
)
def test_a_layout_that_does_not_divide(whole: Path, refused: Refused, flag: str, size: str, numbers: str) -> None:
    message = refused("mixtral_hf", whole, flag, size)
    assert flag in message and size in message and numbers in message


def test_experts_of_a_dense_model(tmp_path: Path, refused: Refused) -> None:
    dense = hugging_face.save(hugging_face.random_model(**hugging_face.MISTRAL_V01), tmp_path / "dense")
    assert "--target-expert-parallel-size" in refused("mistral_hf", dense, "--target-expert-parallel-size", "2")


def test_a_layout_that_format_torch_cannot_hold(whole: Path, refused: Refused) -> None:
    layout = ["--target-expert-tensor-parallel-size", "2", "--target-expert-parallel-size", "2"]
    message = refused("mixtral_hf", whole, *layout, "--ckpt-format", "torch")
    assert "--target-expert-tensor-parallel-size" in message and "torch_dist" in message


def test_an_output_that_is_there(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save = tmp_path / "result"
    save.mkdir()
    (save / "precious").write_text("kept")
    assert run("mixtral_hf", whole, save) == 1
    assert str(save) in capsys.readouterr().err
    assert (save / "precious").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_an_output_that_is_a_file(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save = tmp_path / "result"
    save.write_text("kept")
    assert run("mixtral_hf", whole, save) == 1
    assert str(save) in capsys.readouterr().err
    assert save.read_text() == "kept"


def test_too_little_space(whole: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(whole)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    message = refused("mixtral_hf", whole)
    assert "GB" in message or "MB" in message


def test_a_disk_that_gets_full(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost: with room, the same command goes on."""
    save, left, pwrite = tmp_path / "result", 200_000, os.pwrite

    def pwrite_until_full(descriptor: int, data: bytes, offset: int) -> int:
        nonlocal left
        left -= len(data)
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite_until_full)
        assert run("mixtral_hf", whole, save) == 1
    message = capsys.readouterr().err
    assert "No space left" in message and "Traceback" not in message
    assert not save.exists()
    assert run("mixtral_hf", whole, save) == 0
    assert run("mixtral_mg", save, tmp_path / "back", "--save-model-type", "huggingface") == 0
    check_identical(tmp_path / "back", whole)


def test_megatron_without_a_file(megatron: Path, refused: Refused) -> None:
    file = sorted([*megatron.rglob("*.distcp"), *megatron.rglob("model_optim_rng.pt")])[-1]
    file.unlink()
    message = refused("mixtral_mg", megatron, "--save-model-type", "huggingface")
    assert file.name in message and (file.parent.name in message or file.suffix == ".distcp")


def test_megatron_with_a_truncated_file(megatron: Path, refused: Refused) -> None:
    file = max([*megatron.rglob("*.distcp"), *megatron.rglob("model_optim_rng.pt")], key=lambda f: f.stat().st_size)
    os.truncate(file, file.stat().st_size // 2)
    message = refused("mixtral_mg", megatron, "--save-model-type", "huggingface")
    assert file.name in message


@pytest.mark.parametrize("tracker", [None, "", "12", "rubbish"])
def test_megatron_without_that_iteration(megatron: Path, refused: Refused, tracker: str | None) -> None:
    file = megatron / "latest_checkpointed_iteration.txt"
    file.unlink()
    if tracker is not None:
        file.write_text(tracker)
    message = refused("mixtral_mg", megatron, "--save-model-type", "huggingface")
    assert file.name in message or "iter_0000012" in message


@pytest.mark.parametrize("whole_megatron", ["torch"], indirect=True)
@pytest.mark.parametrize("change", ["missing", "left over", "wrong shape", "replicas differ"])
def test_megatron_tensors(megatron: Path, refused: Refused, change: str) -> None:
    file = sorted(megatron.rglob("model_optim_rng.pt"))[0]
    state = torch.load(file, weights_only=False)
    name = "decoder.layers.1.mlp.router.weight"
    if change == "missing":
        del state["model"][name]
    elif change == "left over":
        name = "decoder.layers.1.self_attention.linear_qkv.bias"
        state["model"][name] = torch.zeros(3)
    elif change == "wrong shape":
        state["model"][name] = torch.zeros(7, 48, dtype=torch.bfloat16)
    else:
        state["model"][name] = state["model"][name] + 1
    torch.save(state, file)
    message = refused("mixtral_mg", megatron, "--save-model-type", "huggingface")
    assert name in message or (change == "replicas differ" and "block_sparse_moe.gate.weight" in message)


class Evil:
    """A pickle of this makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.file),))


@pytest.mark.parametrize("whole_megatron", ["torch"], indirect=True)
def test_a_pickle_with_code_in_it(megatron: Path, refused: Refused, tmp_path: Path) -> None:
    file = sorted(megatron.rglob("model_optim_rng.pt"))[0]
    state = torch.load(file, weights_only=False)
    torch.save(state | {"more": Evil(tmp_path / "evil")}, file)
    message = refused("mixtral_mg", megatron, "--save-model-type", "huggingface")
    assert "mkdir" in message and file.name in message
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("whole_megatron", ["torch_dist"], indirect=True)
@pytest.mark.parametrize("name", [".metadata", "common.pt"])
def test_a_pickle_with_code_in_it_torch_dist(megatron: Path, refused: Refused, tmp_path: Path, name: str) -> None:
    (file,) = megatron.rglob(name)
    if name == ".metadata":
        file.write_bytes(pickle.dumps(Evil(tmp_path / "evil")))
    else:
        torch.save({"args": Evil(tmp_path / "evil")}, file)
    message = refused("mixtral_mg", megatron, "--save-model-type", "huggingface")
    assert "mkdir" in message and name in message
    assert not (tmp_path / "evil").exists()


def test_a_pickle_with_code_in_it_hugging_face(source: Path, refused: Refused, tmp_path: Path) -> None:
    weights: dict = tensors(source)
    for file in source.glob("model*"):
        file.unlink()
    torch.save(weights | {"more": Evil(tmp_path / "evil")}, source / "pytorch_model.bin")
    message = refused("mixtral_hf", source)
    assert "mkdir" in message and "pytorch_model.bin" in message
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model-type", "BERT"], "--model-type"),
        (["--saver", "llama"], "--saver"),
        (["--ckpt-format", "zarr"], "--ckpt-format"),
        (["--num-experts", "4"], "4"),
        (["--tokenizer-model", "absent/tokenizer.model"], "--tokenizer-model"),
    ],
)
def test_flags(whole: Path, refused: Refused, arguments: list[str], named: str) -> None:
    assert named in refused("mixtral_hf", whole, *arguments)


@pytest.mark.parametrize("whole_megatron", ["torch"], indirect=True)
def test_verify_finds_a_flipped_bit(megatron: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = sorted(megatron.rglob("model_optim_rng.pt"))[0]
    assert util.main(["--verify", "--save-dir", str(megatron)]) == 0
    with file.open("r+b") as stream:
        stream.seek(file.stat().st_size // 2)
        (byte,) = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))
    capsys.readouterr()
    assert util.main(["--verify", "--save-dir", str(megatron)]) == 1
    message = capsys.readouterr().err
    assert "model.layers." in message or "embed_tokens" in message or "lm_head" in message
