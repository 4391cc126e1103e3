"""Adapters between Megatron-LM's and PEFT's format, merged, and refused, without either."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ascend_patch.checkpoint import adapters, adapters_merge, adapters_peft
from ascend_patch.checkpoint.adapters import Adapters
from ascend_patch.checkpoint.convert import Options, convert
from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.shape import ModelShape
from tests.unit_tests.checkpoint import small_models
from tests.unit_tests.checkpoint.small_models import MISTRAL, MIXTRAL

RANK = 3


def made(shape: ModelShape, targets: tuple[str, ...] = ()) -> Adapters:
    """Random adapters of ``targets``, of all without any."""
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    generator = torch.Generator().manual_seed(seed)
    pairs = {
        one: (
            torch.randn(RANK, one.cols, generator=generator),
            torch.randn(one.rows, RANK, generator=generator),
        )
        for one in adapters.adaptable(shape)
        if not targets or adapters.target(one) in targets
    }
    return Adapters(shape, 6, RANK, pairs, 0.1)


def check_same(found: Adapters, expected: Adapters) -> None:
    assert (found.rank, found.alpha, found.targets) == (expected.rank, expected.alpha, expected.targets)
    assert found.pairs.keys() == expected.pairs.keys()
    for parameter, pair in expected.pairs.items():
        assert all(torch.equal(a, b) for a, b in zip(found.pairs[parameter], pair, strict=True)), parameter


@pytest.mark.parametrize("shape", [MIXTRAL, MISTRAL], ids=["mixtral", "mistral"])
def test_round_trips(shape: ModelShape, tmp_path: Path) -> None:
    original = made(shape)
    adapters.write(original, tmp_path / "megatron")
    found = adapters.read(tmp_path / "megatron")
    check_same(found, original)
    assert found.shape.tensors() == shape.tensors()
    adapters_peft.write(original, tmp_path / "peft", "base")
    check_same(adapters_peft.read(tmp_path / "peft", shape), original)
    config = json.loads((tmp_path / "peft" / adapters_peft.CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (RANK, 6, "base")
    assert config["lora_dropout"] == (0.0 if shape.num_experts else 0.1)


def test_query_and_value_alone(tmp_path: Path) -> None:
    """Each with an A of its own: twice the rank, and nothing for the keys."""
    adapters_peft.write(made(MISTRAL, ("linear_qkv",)), tmp_path / "peft")
    file = tmp_path / "peft" / adapters_peft.WEIGHTS
    tensors = {name: tensor for name, tensor in load_file(file).items() if ".k_proj." not in name}
    for name, tensor in tensors.items():
        if ".v_proj.lora_A" in name:
            tensor.mul_(2)
    save_file(tensors, file)
    found = adapters_peft.read(tmp_path / "peft", MISTRAL)
    assert (found.rank, found.alpha) == (2 * RANK, 12)
    for parameter, (first, second) in found.pairs.items():
        whole = second @ first
        for name, rows in adapters_peft._rows(parameter).items():
            pair = [tensors.get(f"base_model.model.{name}.lora_{letter}.weight") for letter in "BA"]
            expected = torch.zeros(len(rows), parameter.cols) if pair[0] is None else pair[0] @ pair[1]
            torch.testing.assert_close(whole[rows], expected)


@pytest.mark.parametrize("shape", [MIXTRAL, MISTRAL], ids=["mixtral", "mistral"])
@pytest.mark.parametrize(
    "megatron", [None, {"tensor": 2, "pipeline": 2}, {"tensor": 2, "ckpt_format": "torch"}], ids=["hf", "dist", "torch"]
)
def test_merge(shape: ModelShape, megatron: dict | None, tmp_path: Path) -> None:
    """W + alpha / r B A, rounded once, whatever the format and the layout; nothing else is touched."""
    original, base, merged = small_models.save(tmp_path / "hf", shape), tmp_path / "hf", tmp_path / "merged"
    if megatron is not None:
        base = convert(Options(original, tmp_path / "base", **megatron))
    given = made(shape, ("linear_qkv", "linear_fc1", "linear_fc2"))
    adapters_merge.merge(given, base, merged)
    if megatron is not None:
        merged = convert(Options(merged, tmp_path / "back", loads="megatron", saves="huggingface"))
    before, after = small_models.weights(original), small_models.weights(merged)
    changed = {}
    for parameter, (first, second) in given.pairs.items():
        for name, rows in adapters_peft._rows(parameter).items():
            weight = f"{name}.weight"
            changed[weight] = (before[weight].float() + 2 * second[rows] @ first).to(torch.bfloat16)
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        if name in changed:
            torch.testing.assert_close(tensor, changed[name], rtol=2**-7, atol=2**-10)
        else:
            assert torch.equal(tensor, before[name]), name


def test_refused(tmp_path: Path) -> None:
    given = made(MIXTRAL)
    adapters_peft.write(given, tmp_path / "peft")
    config = tmp_path / "peft" / adapters_peft.CONFIG
    plain = config.read_text()

    def read(**changes: object) -> None:
        config.write_text(json.dumps(json.loads(plain) | changes))
        adapters_peft.read(tmp_path / "peft", MIXTRAL)

    with pytest.raises(CheckpointError, match="use_dora = True; only False can be converted"):
        read(use_dora=True)
    with pytest.raises(CheckpointError, match="rank_pattern"):
        read(rank_pattern={"q_proj": 9})
    with pytest.raises(CheckpointError, match=r"with rank 5, those of this model have \(5, 24\)"):
        read(r=5)
    read()
    with pytest.raises(CheckpointError, match="tensors that are not of this model"):
        adapters_peft.read(tmp_path / "peft", replace(MIXTRAL, num_layers=1))
    with pytest.raises(CheckpointError, match="cannot be read"):
        adapters_peft.read(tmp_path, MIXTRAL)
    half = Adapters(MIXTRAL, 6, RANK, dict(list(given.pairs.items())[:3]))
    with pytest.raises(CheckpointError, match="1 of 2 layers or experts have an adapter of linear_qkv"):
        adapters.write(half, tmp_path / "half")
    base = small_models.save(tmp_path / "mistral", MISTRAL)
    with pytest.raises(CheckpointError, match="The adapters are of a model whose"):
        adapters_merge.merge(given, base, tmp_path / "merged")
    whole = convert(Options(base, tmp_path / "whole"))
    with pytest.raises(CheckpointError, match="holds no adapters"):
        adapters.read(whole)
    (whole / "latest_checkpointed_iteration.txt").write_text("7")
    with pytest.raises(CheckpointError, match="holds a training with its optimizer"):
        adapters_merge.merge(given, whole, tmp_path / "merged")
    of_torch = convert(Options(base, tmp_path / "torch", ckpt_format="torch"))
    with pytest.raises(CheckpointError, match="of format torch"):
        adapters.read(of_torch)
    assert not (tmp_path / "merged").exists()
