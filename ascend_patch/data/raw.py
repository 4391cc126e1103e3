"""Instruction data straight from a file of records, tokenized when it is read (``MP_DATASET_TYPE=raw``)."""

from pathlib import Path

from ascend_patch.data.conversations import Conversation, from_any
from ascend_patch.data.errors import DataError
from ascend_patch.data.formats import read_records
from ascend_patch.data.handlers import Record
from ascend_patch.data.sources import find_sources
from ascend_patch.data.templates import Example, MistralTemplate
from ascend_patch.data.tokenize import load_tokenizer


class RawConversations:
    """A conversation for each record of a file, in Mistral's template; each record says which format it has.

    The conversations are held in memory, their tokens are not.

    Args:
        path: a file as ``tools/preprocess_data.py`` reads it, compressed or not.
        tokenizer: a folder that transformers reads, or a file in it.

    Raises:
        DataError: the file or a record cannot be read, there is none, or there is no such tokenizer.
    """

    def __init__(self, path: Path, tokenizer: str | None) -> None:
        if tokenizer is None:
            raise DataError(
                f"MP_DATASET_TYPE=raw: {path} is tokenized in training, and this --tokenizer-type has no files. Use "
                "--tokenizer-type HuggingFaceTokenizer --tokenizer-model FOLDER."
            )
        folder = Path(tokenizer)
        self._template = MistralTemplate(load_tokenizer(folder.parent if folder.is_file() else folder))
        self._conversations = [_read(place, record) for place, record in read_records(find_sources([str(path)]))]
        if not self._conversations:
            raise DataError(f"{path} holds no records: there is nothing to train on.")

    def __len__(self) -> int:
        return len(self._conversations)

    def __getitem__(self, index: int) -> list[Example]:
        """One conversation."""
        return self._template.encode([self._conversations[index]])


def _read(place: str, record: Record) -> Conversation:
    try:
        return from_any(record)
    except DataError as error:
        raise DataError(f"{place}: {error}") from error
