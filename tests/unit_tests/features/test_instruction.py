"""Which dataset is built, by flags, data and environment."""

import argparse
from pathlib import Path
from types import SimpleNamespace

import pytest
from megatron.core.datasets.gpt_dataset import GPTDataset, MockGPTDataset
from megatron.training import global_vars
from megatron.training.datasets.sft_dataset import SFTDataset

from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.features import instruction
from ascend_patch.modules.instruction_dataset import InstructionDataset, PackedInstructionDataset
from tests.unit_tests.data.stored_data import example, write

ARGUMENTS = {
    "sft": False,
    "is_instruction_dataset": False,
    "transformer_impl": "transformer_engine",
    "micro_batch_size": 1,
    "pipeline_model_parallel_size": 1,
}


@pytest.fixture
def stored(tmp_path: Path) -> str:
    return write(tmp_path / "alpaca", [[example([1, 5, 2], "-++")]])


@pytest.fixture
def records(tmp_path: Path) -> str:
    path = tmp_path / "alpaca.json"
    path.write_text('[{"instruction": "q", "output": "a"}]')
    return str(path)


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch):
    """choose(cls, paths, raw, **flags): the class that is built."""

    def make(cls: type, *paths: str, raw: bool = False, **flags) -> type:
        arguments = {name: flags.pop(name, value) for name, value in ARGUMENTS.items()}
        monkeypatch.setattr(global_vars, "_GLOBAL_ARGS", SimpleNamespace(**arguments))
        monkeypatch.setenv("MP_DATASET_TYPE", "raw" if raw else "")
        config = {"mock": False, "blend_per_split": None, "blend": (list(paths), None)}
        config |= {"create_attention_mask": False, "reset_attention_mask": False}
        return instruction.dataset_class(cls, SimpleNamespace(**config | flags))

    return make


def test_prepared_files(choose, stored: str) -> None:
    assert choose(GPTDataset, stored, is_instruction_dataset=True) is InstructionDataset
    assert choose(GPTDataset, stored, is_instruction_dataset=True, inter_document_masking=True) is (
        PackedInstructionDataset
    )
    assert choose(SFTDataset, stored, sft=True) is PackedInstructionDataset
    assert choose(SFTDataset, stored, sft=True, is_instruction_dataset=True) is PackedInstructionDataset


def test_splits_of_their_own(choose, stored: str) -> None:
    per_split = [([stored], None), None, ([stored], None)]
    assert choose(SFTDataset, sft=True, blend=None, blend_per_split=per_split) is PackedInstructionDataset


def test_records(choose, records: str) -> None:
    assert choose(GPTDataset, records, raw=True, is_instruction_dataset=True) is InstructionDataset
    assert choose(SFTDataset, records, raw=True, sft=True) is PackedInstructionDataset


def test_upstreams_own_stay(choose, records: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(SFTDataset, records, sft=True) is SFTDataset
    assert choose(GPTDataset, "text_document") is GPTDataset
    assert choose(MockGPTDataset, is_instruction_dataset=True, mock=True, blend=None) is MockGPTDataset
    monkeypatch.setattr(global_vars, "_GLOBAL_ARGS", None)  # a process that only builds a dataset
    assert instruction.dataset_class(GPTDataset, None) is GPTDataset


def test_text_beside_instructions_of_the_same_prefix(choose, stored: str) -> None:
    Path(f"{stored}.idx").touch()
    assert choose(GPTDataset, stored) is GPTDataset


def test_contradictions(choose, stored: str, records: str) -> None:
    with pytest.raises(AscendPatchError, match="is the prefix of instruction data. Add --is-instruction-dataset"):
        choose(GPTDataset, stored)
    with pytest.raises(AscendPatchError, match="MP_DATASET_TYPE=raw is for instruction data: add --is-instruction"):
        choose(GPTDataset, records, raw=True)
    with pytest.raises(AscendPatchError, match=r"--data-path .*alpaca is no file. It takes files of records"):
        choose(GPTDataset, stored, raw=True, is_instruction_dataset=True)
    with pytest.raises(AscendPatchError, match=r"alpaca\.json is a file. Set MP_DATASET_TYPE=raw"):
        choose(GPTDataset, records, is_instruction_dataset=True)
    with pytest.raises(AscendPatchError, match="--reset-attention-mask was given.*Use --sft instead"):
        choose(GPTDataset, stored, is_instruction_dataset=True, reset_attention_mask=True, create_attention_mask=True)
    local = {"reset_attention_mask": True, "create_attention_mask": True, "transformer_impl": "local"}
    assert choose(GPTDataset, stored, is_instruction_dataset=True, **local) is InstructionDataset


def test_the_builder_gets_it(choose, stored: str) -> None:
    choose(GPTDataset, stored, is_instruction_dataset=True)  # leaves the arguments behind
    config = SimpleNamespace(
        mock=False, blend_per_split=None, blend=([stored], None), create_attention_mask=True, reset_attention_mask=False
    )
    seen = []
    instruction.initialize_builder(lambda self, *rest: seen.append(rest))("self", GPTDataset, [1], len, config)
    assert seen == [(InstructionDataset, [1], len, config)]


def test_the_flag() -> None:
    add = instruction.add_megatron_arguments(lambda parser: parser)
    parser = add(argparse.ArgumentParser())
    assert parser.parse_args([instruction.FLAG]).is_instruction_dataset is True
    assert parser.parse_args([]).is_instruction_dataset is False


def test_flags_of_our_own() -> None:
    """Upstream's flags come first; these are what scripts for Ascend carry already."""
    added = {
        path.name: path.read_text().count(".add_argument(") for path in Path(instruction.__file__).parent.glob("*.py")
    }
    assert {name: count for name, count in added.items() if count} == {"instruction.py": 1, "lora.py": 5}
