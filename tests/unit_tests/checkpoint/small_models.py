"""Small models with random weights in Hugging Face folders, made without transformers; interruptions."""

import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ascend_patch.checkpoint import huggingface
from ascend_patch.checkpoint.shape import ModelShape
from tests.unit_tests.checkpoint.rectangles import raw

MIXTRAL = ModelShape(
    num_layers=2,
    hidden_size=24,
    ffn_hidden_size=40,
    num_attention_heads=4,
    num_query_groups=2,
    head_dim=8,
    vocab_size=53,
    num_experts=4,
    topk=2,
)
MISTRAL = ModelShape(
    num_layers=4,
    hidden_size=20,
    ffn_hidden_size=36,
    num_attention_heads=6,
    num_query_groups=2,
    head_dim=4,
    vocab_size=31,
    sliding_window=16,
)


def save(folder: Path, shape: ModelShape, dtype: torch.dtype = torch.bfloat16, **config: object) -> Path:
    """A Hugging Face folder with random weights, a tokenizer and a generation config of nobody's."""
    folder.mkdir(parents=True)
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    generator = torch.Generator().manual_seed(seed)
    checkpoint = huggingface.create(folder, shape, dtype)
    for (piece,) in checkpoint.pieces.values():
        values = torch.randn(piece.tensor.rows, piece.tensor.cols, generator=generator).to(dtype)
        with piece.tensor.file.open("r+b") as file:
            file.seek(piece.tensor.offset)
            file.write(raw(values))
    (folder / "config.json").write_text(json.dumps(shape.to_hf(dtype) | config))
    (folder / "generation_config.json").write_text('{"bos_token_id": 1}')
    (folder / "tokenizer.model").write_bytes(b"pieces")
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a Hugging Face folder, read by the library."""
    from safetensors.torch import load_file

    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


class Interrupting:
    """A progress that raises ``error`` after so many bytes of ``what``; ``lines`` are what it was told."""

    def __init__(self, error: BaseException | None = None, after: int = 0, what: str = "Converting"):
        self.lines: list[str] = []
        self.bars: list[str] = []
        self._error, self._after, self._what = error, after, what

    def say(self, text: str) -> None:
        self.lines.append(text)

    @contextmanager
    def bar(self, what: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
        self.bars.append(what)
        seen = done

        def advance(nbytes: int) -> None:
            nonlocal seen
            seen += nbytes
            if self._error is not None and what == self._what and seen > self._after:
                raise self._error

        yield advance
        assert self._error is not None or seen == total


def flip(file: Path, position: int) -> None:
    """Change one bit of a file."""
    descriptor = os.open(file, os.O_RDWR)
    byte = os.pread(descriptor, 1, position)[0]
    os.pwrite(descriptor, bytes([byte ^ 1]), position)
    os.close(descriptor)
