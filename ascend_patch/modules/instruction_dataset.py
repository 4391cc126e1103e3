"""Instruction data as upstream's dataset builder wants it."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.megatron_dataset import MegatronDataset
from megatron.core.utils import log_single_rank

from ascend_patch.compat import packing
from ascend_patch.data.errors import DataError
from ascend_patch.data.raw import RawConversations
from ascend_patch.data.samples import make_sample
from ascend_patch.data.stored import StoredConversations

logger = logging.getLogger(__name__)


class InstructionDataset(MegatronDataset):
    """One document a sample, its conversations one after the other, then padding; learned are the answers.

    A conversation sees itself and, in a document of several, those before it; with ``--reset-attention-mask`` (and
    ``--transformer-impl local``, the only one that reads the mask) itself alone. ``--reset-position-ids`` counts
    positions anew in each, which matters to learned position embeddings only: what rotary embeddings give between two
    tokens depends on their distance. :class:`PackedInstructionDataset` keeps conversations apart in every case.

    Padding is the end-of-document token, as Mixtral has none of its own. It comes last, so that no token of a
    conversation sees it, and its loss is masked. Documents are shuffled anew in each epoch, by ``--seed``.

    Raises:
        DataError: there is nothing to train on, or flags contradict each other.
    """

    is_packed = False

    def __init__(self, dataset, dataset_path, indices, num_samples, index_split, config) -> None:
        if indices is None:
            raise DataError(
                "--dataloader-fast-cache-load was given, but instruction data has no cache to load. Leave it out."
            )
        super().__init__(dataset, dataset_path, indices, num_samples, index_split, config)
        if not len(indices):
            raise DataError(
                f"There is nothing in the {index_split.name} split: --split {config.split} gives it {len(indices)} of "
                f"the {len(dataset)} documents of {dataset_path}. Give it more, or 0, as in --split 100,0,0."
            )
        self._epoch, self._order = -1, np.empty(0, np.int64)

    @staticmethod
    def build_low_level_dataset(dataset_path: str, config: Any) -> StoredConversations | RawConversations:
        """What ``--data-path`` names: a file of records, or the prefix of prepared data."""
        return _conversations(dataset_path, config, multiple=1)

    @staticmethod
    def numel_low_level_dataset(low_level_dataset: StoredConversations | RawConversations) -> int:
        """How many documents there are to split."""
        return len(low_level_dataset)

    def __len__(self) -> int:
        return self.num_samples or len(self.indices)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """``tokens``, ``labels``, ``position_ids`` ``[s]`` int64, ``loss_mask [s]`` float32; ``attention_mask [1, s,
        s]`` bool, True where attention is not allowed, if the configuration asks for one."""
        config = self.config
        examples = self.dataset[self._document(int(index))]
        multiple = _multiple(config) if self.is_packed else 1
        sample = make_sample(examples, config.sequence_length, filler=config.tokenizer.eod, multiple=multiple)
        restart = config.reset_position_ids or self.is_packed
        item = {
            "tokens": torch.from_numpy(sample.tokens),
            "labels": torch.from_numpy(sample.labels),
            "loss_mask": torch.from_numpy(sample.loss_mask),
            "position_ids": torch.from_numpy(sample.position_ids) if restart else torch.arange(len(sample.tokens)),
        }
        if config.create_attention_mask:
            item["attention_mask"] = torch.from_numpy(sample.hidden(config.reset_attention_mask)).unsqueeze(0)
        if self.is_packed:
            boundaries = torch.from_numpy(sample.boundaries)
            item["cu_seqlens"] = packing.cu_seqlens(boundaries)
            item["max_seqlen"] = boundaries.diff().max()
        return item

    def _document(self, index: int) -> int:
        epoch, place = divmod(index, len(self.indices))
        if epoch != self._epoch:
            generator = np.random.default_rng([self.config.random_seed, epoch])
            self._epoch, self._order = epoch, generator.permutation(self.indices)
        return int(self._order[place])


class PackedInstructionDataset(InstructionDataset):
    """The same with ``cu_seqlens [k + 1]`` and ``max_seqlen []`` int32: a conversation sees itself alone.

    Positions are counted anew in each, and the padding is a sequence of its own. Context parallelism cuts every
    conversation into twice as many pieces as ranks: to a multiple of that each is padded by itself, and its padding
    belongs to it.
    """

    is_packed = True

    def __init__(self, dataset, dataset_path, indices, num_samples, index_split, config) -> None:
        if config.create_attention_mask or config.reset_attention_mask:
            raise DataError(
                "With --sft, cu_seqlens keep conversations apart and no mask is made. Add "
                "--no-create-attention-mask-in-dataloader and leave --reset-attention-mask out."
            )
        super().__init__(dataset, dataset_path, indices, num_samples, index_split, config)

    @staticmethod
    def build_low_level_dataset(dataset_path: str, config: Any) -> StoredConversations | RawConversations:
        """As that of :class:`InstructionDataset`, for conversations that are padded one by one."""
        return _conversations(dataset_path, config, _multiple(config))


def _multiple(config: Any) -> int:
    """Of how many positions each packed conversation is to be a multiple."""
    ranks = config.context_parallel_size or 1
    return 2 * ranks if ranks > 1 else 1


def _conversations(dataset_path: str, config: Any, multiple: int) -> StoredConversations | RawConversations:
    if Path(dataset_path).is_file():
        return RawConversations(Path(dataset_path), config.tokenizer.path)
    stored = StoredConversations(dataset_path, config.sequence_length, mmap=config.mmap_bin_files, multiple=multiple)
    if stored.cut:
        log_single_rank(
            logger,
            logging.WARNING,
            f"{dataset_path}: {stored.cut} documents are longer than --seq-length {config.sequence_length}; "
            f"{stored.left_out} of them are left out, as all of their answers lie beyond, the others are cut.",
        )
    return stored
