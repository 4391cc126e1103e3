"""The dataset of instructions as upstream's builder and loader use it."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
from megatron.training.datasets.sft_dataset import SFTDataset

from ascend_patch.data.errors import DataError
from ascend_patch.data.samples import make_sample
from ascend_patch.modules.instruction_dataset import InstructionDataset, PackedInstructionDataset
from tests.unit_tests.data.stored_data import example, write

EOD, LENGTH = 2, 16
SHORT = [example([1, 10 + n, 11 + n, 2], "--++") for n in range(0, 70, 10)]
LONG = [example([1, *range(100 + n, 110 + n), 2], "---+++++++++") for n in range(0, 60, 20)]
DOCUMENTS = [
    [SHORT[0]],
    [LONG[0]],
    [SHORT[1], LONG[1]],
    [SHORT[2], SHORT[3], SHORT[4]],
    [LONG[2]],
    [SHORT[5], SHORT[6]],
]


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return write(tmp_path / "alpaca", DOCUMENTS)


@pytest.fixture
def build() -> Callable:
    """build(cls, prefix, samples, **changes): the train split."""

    def make(cls: type, prefix: str, samples: int | None = 6, split: str = "1,0,0", **changes) -> InstructionDataset:
        tokenizer = SimpleNamespace(eod=EOD, vocab_size=200, unique_identifiers={"class": "of this test"}, path=None)
        fields = {
            "sequence_length": LENGTH,
            "create_attention_mask": False,
            "reset_position_ids": False,
            "reset_attention_mask": False,
        }
        config = GPTDatasetConfig(
            random_seed=5,
            blend=([prefix], None),
            split=split,
            tokenizer=tokenizer,
            eod_mask_loss=False,
            **{**fields, **changes},
        )
        return BlendedMegatronDatasetBuilder(cls, [samples, 0, 0], lambda: True, config).build()[0]

    return make


def key(tokens: torch.Tensor) -> tuple[int, ...]:
    return tuple(tokens.tolist())


def test_an_epoch_has_every_document_once(build: Callable, prefix: str) -> None:
    dataset = build(InstructionDataset, prefix, samples=18)
    expected = Counter(key(make_sample(document, LENGTH, EOD).tokens) for document in DOCUMENTS)
    epochs = [[key(dataset[index]["tokens"]) for index in range(start, start + 6)] for start in (0, 6, 12)]
    assert [Counter(epoch) for epoch in epochs] == [expected] * 3
    assert len(dataset) == 18
    assert [key(dataset[index]["tokens"]) for index in range(6)] == epochs[0]  # again, whatever was read between
    assert not epochs[0] == epochs[1] == epochs[2]


def test_samples(build: Callable, prefix: str) -> None:
    dataset = build(InstructionDataset, prefix)
    by_tokens = {key(s.tokens): s for s in (make_sample(document, LENGTH, EOD) for document in DOCUMENTS)}
    for index in range(6):
        item = dataset[index]
        expected = by_tokens[key(item["tokens"])]
        assert item["labels"].tolist() == expected.labels.tolist()
        assert item["loss_mask"].tolist() == expected.loss_mask.tolist()
        assert item["position_ids"].tolist() == list(range(LENGTH))
        assert {name: value.dtype for name, value in item.items()} == {
            "tokens": torch.int64,
            "labels": torch.int64,
            "loss_mask": torch.float32,
            "position_ids": torch.int64,
        }


@pytest.mark.parametrize("across", [False, True])
def test_mask_and_positions(build: Callable, prefix: str, across: bool) -> None:
    flags = {"create_attention_mask": True, "reset_attention_mask": across, "reset_position_ids": across}
    dataset = build(InstructionDataset, prefix, **flags)
    by_tokens = {key(s.tokens): s for s in (make_sample(document, LENGTH, EOD) for document in DOCUMENTS)}
    for index in range(6):
        item = dataset[index]
        expected = by_tokens[key(item["tokens"])]
        assert item["attention_mask"].shape == (1, LENGTH, LENGTH)
        assert np.array_equal(item["attention_mask"][0].numpy(), expected.hidden(across))
        positions = expected.position_ids if across else np.arange(LENGTH)
        assert np.array_equal(item["position_ids"].numpy(), positions)


def test_packed(build: Callable, prefix: str) -> None:
    dataset = build(PackedInstructionDataset, prefix)
    by_tokens = {key(s.tokens): s for s in (make_sample(document, LENGTH, EOD) for document in DOCUMENTS)}
    for index in range(6):
        item = dataset[index]
        expected = by_tokens[key(item["tokens"])]
        bounds = item["cu_seqlens"]
        assert bounds.dtype == item["max_seqlen"].dtype == torch.int32
        assert bounds.unique_consecutive().tolist() == expected.boundaries.tolist()
        assert int(item["max_seqlen"]) == np.diff(expected.boundaries).max()
        assert np.array_equal(item["position_ids"].numpy(), expected.position_ids)
    batch = torch.utils.data.default_collate([dataset[index] for index in range(6)])
    assert batch["cu_seqlens"].shape[0] == batch["max_seqlen"].shape[0] == 6


@pytest.mark.parametrize("ranks", [2, 4])
def test_packed_for_context_parallelism(build: Callable, prefix: str, ranks: int) -> None:
    length = 8 * ranks
    dataset = build(PackedInstructionDataset, prefix, context_parallel_size=ranks, sequence_length=length)
    samples = [make_sample(document, length, EOD, multiple=2 * ranks) for document in DOCUMENTS]
    by_tokens = {key(sample.tokens): sample for sample in samples}
    for index in range(6):
        item = dataset[index]
        expected = by_tokens[key(item["tokens"])]
        assert item["cu_seqlens"].unique_consecutive().tolist() == expected.boundaries.tolist()
        assert not torch.any(item["cu_seqlens"] % (2 * ranks))
        assert torch.equal(item["loss_mask"], torch.from_numpy(expected.loss_mask))
    # Conversations that see one another are not cut one by one, and keep their places.
    plain = build(InstructionDataset, prefix, context_parallel_size=ranks, sequence_length=length)
    whole = {key(make_sample(document, length, EOD).tokens) for document in DOCUMENTS}
    assert {key(plain[index]["tokens"]) for index in range(6)} == whole


def test_packed_without_room_for_context_parallelism(build: Callable, prefix: str) -> None:
    with pytest.raises(DataError, match=r"into 24 positions, .* --seq-length 16 --pad-to-multiple-of 8"):
        build(PackedInstructionDataset, prefix, context_parallel_size=4)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_upstreams_own_pads_alike(ranks: int) -> None:
    """Its samples can be cut as well; and it learns from no padding."""
    turns = [[{"role": "system", "content": n}, {"role": "assistant", "content": n}] for n in (5, 8, 14, 11)]
    pad = 1

    def tokenize(conversation: list[dict], **_: object) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.arange(100, 100 + conversation[0]["content"])
        return tokens, np.where(tokens > 102, tokens, -100)

    tokenizer = SimpleNamespace(eod=EOD, pad=pad, tokenize_conversation=tokenize)
    config = SimpleNamespace(
        tokenizer=tokenizer,
        sequence_length=48,
        context_parallel_size=ranks,
        reset_position_ids=False,
        create_attention_mask=False,
        reset_attention_mask=False,
    )
    dataset = object.__new__(SFTDataset)
    dataset.config, dataset.dataset, dataset.indices = config, [sum(turns, [])], np.array([0])
    item = dataset[0]
    ends = item["cu_seqlens"].unique_consecutive()
    assert ends[0] == 0 and ends[-1] == 48
    if ranks > 1:
        assert not torch.any(ends % (2 * ranks))
    learned = item["loss_mask"] > 0
    assert torch.equal(item["labels"][learned], item["tokens"][learned] + 1)
    assert learned.sum() == sum(n - 3 for n in (5, 8, 14, 11))


def test_a_shorter_run(build: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prefix = write(tmp_path / "padded", [[SHORT[0]], [LONG[0]], [SHORT[1]], [LONG[1]]])
    dataset = build(InstructionDataset, prefix, samples=4, sequence_length=4)
    assert "2 documents are longer than --seq-length 4; 0 of them are left out" in caplog.text
    assert sorted(key(dataset[index]["tokens"])[:2] for index in range(4)) == [(1, 10), (1, 20), (1, 100), (1, 120)]
    dataset = build(InstructionDataset, prefix, samples=4, sequence_length=2)
    assert "4 documents are longer than --seq-length 2; 2 of them are left out" in caplog.text
    assert {key(dataset[index]["tokens"]) for index in range(4)} == {(1, 10), (1, 20)}


def test_splits_and_sizes(build: Callable, prefix: str) -> None:
    assert len(build(InstructionDataset, prefix, samples=None)) == 6
    assert len(build(InstructionDataset, prefix, samples=0)) == 6  # as GPTDataset: an epoch
    with pytest.raises(DataError, match=r"nothing in the test split: --split 90,5,5 gives it 0 of the 6 documents"):
        build(InstructionDataset, prefix, split="90,5,5")


@pytest.mark.parametrize("flag", ["create_attention_mask", "reset_attention_mask"])
def test_packed_makes_no_mask(build: Callable, prefix: str, flag: str) -> None:
    with pytest.raises(DataError, match="Add --no-create-attention-mask-in-dataloader"):
        build(PackedInstructionDataset, prefix, **{flag: True})
