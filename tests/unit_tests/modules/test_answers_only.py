"""From records to what training gets, by every route: only answers carry loss, token by token, in every turn."""

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import sentencepiece
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig

from ascend_patch.modules.instruction_dataset import InstructionDataset, PackedInstructionDataset
from tests.unit_tests.tools.conftest import SENTENCES, sentencepiece_model, tokenizer_folder
from tools.preprocess_data import main as preprocess

__all__ = ["sentencepiece_model", "tokenizer_folder"]  # fixtures

BOS, EOS, LENGTH, RECORDS = 1, 2, 160, 12
Turns = list[tuple[str, str]]


@pytest.fixture(scope="module")
def conversations() -> list[Turns]:
    """Of one to three turns, with new words each time, and none like another."""
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed of the conversations {seed}")
    generator, words = random.Random(seed), " ".join(SENTENCES).split()

    def some() -> str:
        return " ".join(generator.sample(words, generator.randint(2, 5)))

    return [[(f"{number} {some()}", some()) for _ in range(1 + number % 3)] for number in range(RECORDS)]


@pytest.fixture(scope="module")
def records(conversations: list[Turns], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("records") / "chats.jsonl"
    lines = []
    for turns in conversations:
        sides = [("user", question) for question, _ in turns], [("assistant", answer) for _, answer in turns]
        messages = [{"role": role, "content": text} for turn in zip(*sides, strict=True) for role, text in turn]
        lines.append(json.dumps({"messages": messages}) + "\n")
    file.write_text("".join(lines))
    return file


@pytest.fixture(scope="module")
def expected(conversations: list[Turns], sentencepiece_model: bytes) -> Counter:
    """(token that is seen, token that is learned from it, or None) of each conversation, by SentencePiece alone."""
    pieces = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model)
    found: Counter = Counter()
    for turns in conversations:
        ids: list[int] = [BOS]
        learned = [False]
        for question, answer in turns:
            asked, said = pieces.encode(f"[INST] {question} [/INST]"), [*pieces.encode(answer), EOS]
            ids += asked + said
            learned += [False] * len(asked) + [True] * len(said)
        after = zip(ids[:-1], ids[1:], learned[1:], strict=True)
        found[tuple((seen, label if is_learned else None) for seen, label, is_learned in after)] += 1
    return found


def prepared(records: Path, tokenizer: Path, folder: Path, *options: str) -> str:
    """The prefix of what ``tools/preprocess_data.py`` makes of the records."""
    common = ["--input", str(records), "--tokenizer-name-or-path", str(tokenizer), "--workers", "1"]
    common += ["--handler-name", "OpenAIStyleInstructionHandler", "--seq-length", str(LENGTH)]
    assert preprocess([*common, "--output-prefix", str(folder / "chats"), *options]) == 0
    return str(folder / "chats")


ROUTES: dict[str, Callable[[Path, Path, Path], str]] = {
    "padded": prepared,
    "packed": lambda *where: prepared(*where, "--pack"),
    "raw": lambda records, tokenizer, folder: str(records),
}


def split(item: dict[str, torch.Tensor]) -> list[tuple]:
    """The conversations of a sample, as :func:`expected` has them; padding carries no loss and is left out."""
    seen, labels, learned = (item[name].tolist() for name in ("tokens", "labels", "loss_mask"))
    assert set(learned) <= {0, 1}
    starts = [place for place, token in enumerate(seen) if token == BOS]
    found = []
    for start, end in zip(starts, [*starts[1:], len(seen)], strict=True):
        pairs = list(zip(seen[start:end], labels[start:end], learned[start:end], strict=True))
        last = max(place for place, pair in enumerate(pairs) if pair[2])  # the end of the last answer
        found.append(tuple((token, label if is_learned else None) for token, label, is_learned in pairs[: last + 1]))
    return found


@pytest.mark.parametrize("cls", [InstructionDataset, PackedInstructionDataset], ids=["together", "apart"])
@pytest.mark.parametrize("route", ROUTES)
def test_only_answers_carry_loss(
    route: str, cls: type, records: Path, expected: Counter, tokenizer_folder: Path, tmp_path: Path
) -> None:
    path = ROUTES[route](records, tokenizer_folder, tmp_path)
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=LENGTH,
        blend_per_split=[([path], None), None, None],
        tokenizer=SimpleNamespace(
            eod=EOS, vocab_size=400, unique_identifiers={"class": "of this test"}, path=str(tokenizer_folder)
        ),
        create_attention_mask=False,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
    )
    dataset = BlendedMegatronDatasetBuilder(cls, [None, 0, 0], lambda: True, config).build()[0]
    assert (len(dataset) < RECORDS) == (route == "packed")
    assert Counter(one for index in range(len(dataset)) for one in split(dataset[index])) == expected
