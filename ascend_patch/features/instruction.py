"""Instruction data: ``--is-instruction-dataset``, and ``--sft`` with prepared files or plain json.

``--is-instruction-dataset`` is the one flag of Ascend's Mixtral scripts that upstream does not have.
``MP_DATASET_TYPE=raw`` reads json, jsonl and so on directly, as Pai-Megatron-Patch does.

| flags | ``--data-path`` | samples |
| --- | --- | --- |
| ``--is-instruction-dataset`` | prefix of prepared files | ``InstructionDataset`` |
| ``--sft``, with or without it | prefix of prepared files | ``PackedInstructionDataset``: conversations kept apart |
| either, ``MP_DATASET_TYPE=raw`` | a file of records | the same, one conversation a sample |
| ``--sft`` alone | a file of records | upstream's ``SFTDataset``, untouched |
"""

import argparse
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from ascend_patch.config import Config
from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.engine.patch import Patch

FLAG = "--is-instruction-dataset"


def add_megatron_arguments(original: Callable) -> Callable:
    """``add_megatron_arguments`` with :data:`FLAG`."""

    @wraps(original)
    def add(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        parser = original(parser)
        parser.add_argument_group("ascend_patch").add_argument(
            FLAG, action="store_true", help="--data-path names instruction data; train on the answers only"
        )
        return parser

    return add


def initialize_builder(original: Callable) -> Callable:
    """``BlendedMegatronDatasetBuilder.__init__`` that builds instruction data where it is asked for."""

    @wraps(original)
    def initialize(self, cls, sizes, is_built_on_rank, config) -> None:
        original(self, dataset_class(cls, config), sizes, is_built_on_rank, config)

    return initialize


def dataset_class(cls: type, config: Any) -> type:
    """``cls``, or the dataset of instruction data in its place. See the module's docstring.

    Raises:
        AscendPatchError: the data is of another kind than the flags say, or the flags contradict each other.
    """
    from megatron.core.datasets.gpt_dataset import GPTDataset

    from ascend_patch.data.stored import is_stored

    args = training_arguments()
    if args is None or config.mock or not (args.sft or cls is GPTDataset):
        return cls
    raw, paths = Config.from_environment().dataset_type == "raw", _paths(config)
    stored = [path for path in paths if is_stored(path)]
    if not (args.sft or args.is_instruction_dataset):
        if raw:
            raise AscendPatchError(f"MP_DATASET_TYPE=raw is for instruction data: add {FLAG} or --sft, or unset it.")
        if stored and not Path(f"{stored[0]}.idx").is_file():
            raise AscendPatchError(f"{stored[0]} is the prefix of instruction data. Add {FLAG} or --sft.")
        return cls
    if not (args.is_instruction_dataset or raw or stored):
        return cls
    _check_paths(paths, raw)
    from ascend_patch.modules.instruction_dataset import InstructionDataset, PackedInstructionDataset

    if args.sft or getattr(config, "inter_document_masking", False):
        from ascend_patch.compat import packing

        packing.check(args.micro_batch_size, args.pipeline_model_parallel_size)
        return PackedInstructionDataset
    if config.reset_attention_mask and not (config.create_attention_mask and args.transformer_impl == "local"):
        raise AscendPatchError(
            "--reset-attention-mask was given, but a mask is read with --transformer-impl local only, and not with "
            "--no-create-attention-mask-in-dataloader. Use --sft instead, which keeps conversations apart."
        )
    return InstructionDataset


def training_arguments() -> Any:
    """Those that were parsed; None in a process that only builds a dataset."""
    return getattr(sys.modules.get("megatron.training.global_vars"), "_GLOBAL_ARGS", None)


def _paths(config: Any) -> list[str]:
    """All that ``--data-path`` and its kin name."""
    blends = [config.blend] if config.blend_per_split is None else config.blend_per_split
    return [path for blend in blends if blend is not None for path in blend[0]]


def _check_paths(paths: list[str], raw: bool) -> None:
    for path in paths:
        if raw and not Path(path).is_file():
            raise AscendPatchError(
                f"MP_DATASET_TYPE=raw: --data-path {path} is no file. It takes files of records (.json, .jsonl, "
                ".parquet …); unset MP_DATASET_TYPE for data of tools/preprocess_data.py."
            )
        if not raw and Path(path).is_file():
            raise AscendPatchError(
                f"--data-path {path} is a file. Set MP_DATASET_TYPE=raw to train on its records, or prepare it with "
                "tools/preprocess_data.py and give the prefix."
            )


_HERE = "ascend_patch.features.instruction"

PATCHES = (
    Patch(
        id="instruction.flag",
        target="megatron.training.arguments:add_megatron_arguments",
        impl=f"{_HERE}:add_megatron_arguments",
        mode="wrap",
        upstream=">=0.17,<0.20",
        reason=f"Upstream has no word for {FLAG}, which the scripts for Ascend carry.",
        remove_when="upstream trains on prepared instruction data by a flag of its own.",
    ),
    Patch(
        id="instruction.dataset",
        target="megatron.core.datasets.blended_megatron_dataset_builder:BlendedMegatronDatasetBuilder.__init__",
        impl=f"{_HERE}:initialize_builder",
        mode="wrap",
        upstream=">=0.17,<0.20",
        reason=(
            "Upstream's instruction data is json that is tokenized in every run, needs the package datasets, and with "
            "the prompt format 'default' learns the questions as well."
        ),
        remove_when="upstream reads prepared instruction data and masks the questions.",
        consumers=(
            "megatron.core.datasets.megatron_dataset:MegatronDataset",
            "megatron.training.datasets.sft_dataset:SFTDataset",
        ),
    ),
    Patch(
        id="instruction.packed_batches",
        target="megatron.training.utils:get_batch_on_this_tp_rank",
        impl="ascend_patch.compat.packing:tell_every_rank",
        mode="wrap",
        upstream=">=0.17,<0.18",
        reason=(
            "With --sft, tensor parallel ranks of a later pipeline stage but the first are not told cu_seqlens: they "
            "attend across conversations, or fail."
        ),
        remove_when="0.17 is no longer supported.",
    ),
)
