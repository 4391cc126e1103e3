"""Tokenizers as data preparation needs them: many texts at once, the ids of upstream's own wrappers."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np


class Tokenizer(Protocol):
    """What handlers use of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""

    @property
    def dtype(self) -> np.dtype:
        """The dtype upstream stores ids of this vocabulary in: uint16, or int32 from 65500 ids on."""

    @property
    def eod(self) -> int:
        """The id that ends a document."""

    @property
    def hf(self) -> Any:
        """The transformers tokenizer, for chat templates and decoding."""

    def encode(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """The ids of each text, those of ``tokenizer(text)``: with the begin-of-sequence token if it adds one."""
