"""The files beside the weights of a Hugging Face folder: config.json, generation_config.json, the tokenizer.

They travel with the weights. A Megatron-LM checkpoint keeps them in its folder `huggingface`, so that the way back
needs nothing else.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from ascend_patch.checkpoint.dtypes import dtype_name
from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.shape import ModelShape

KEPT_IN = "huggingface"
"""The folder of a Megatron-LM checkpoint that holds them."""
CONFIG = "config.json"
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model*",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.j*",
    "tekken.json",
)
_OTHERS = ("generation_config.json",)

_SAME_WEIGHTS = (
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "head_dim",
    "num_experts",
    "topk",
    "rotary_base",
    "norm_epsilon",
    "tied",
)
"""Where a config.json must agree with the checkpoint. The length of context and the window may differ: training at
4096 tokens says nothing about them."""


def find(given: Path | None, checkpoint: Path, original: Path) -> Path | None:
    """The folder with the files that belong to a Megatron-LM checkpoint.

    Args:
        given: named by the user, or None.
        checkpoint: may keep them; it may be the folder of one iteration.
        original: may be that of the original model, into which it is converted back.

    Raises:
        CheckpointError: a folder is given that has no config.json.
    """
    if given is not None and not (given / CONFIG).is_file():
        raise CheckpointError(f"--hf-folder {given} has no {CONFIG}. Name the folder of the original model.")
    if re.fullmatch(r"release|iter_\d+", checkpoint.name):
        checkpoint = checkpoint.parent
    candidates = [given] if given else [checkpoint / KEPT_IN, original]
    return next((folder for folder in candidates if (folder / CONFIG).is_file()), None)


def vocab_size(folder: Path | None) -> int | None:
    """The tokens of the model, as its config.json says.

    Raises:
        CheckpointError: config.json cannot be read.
    """
    return None if folder is None else ModelShape.from_hf(_read_config(folder), str(folder / CONFIG)).vocab_size


def check_tokenizer(tokenizer: Path | None) -> None:
    """Raises:
    CheckpointError: a tokenizer is named that does not exist.
    """
    if tokenizer is not None and not tokenizer.exists():
        raise CheckpointError(f"--tokenizer-model {tokenizer} does not exist. Name a tokenizer.model or its folder.")


def config(folder: Path | None, shape: ModelShape, dtype: torch.dtype) -> dict[str, Any]:
    """The config.json of a model that was converted back, from that of the original model where there is one.

    Raises:
        CheckpointError: the original's config.json cannot be read, or is that of a model with other weights.
    """
    if folder is None:
        return shape.to_hf(dtype)
    found = _read_config(folder)
    original = ModelShape.from_hf(found, str(folder / CONFIG))
    differ = [
        f"{name} is {getattr(original, name)} and the checkpoint's is {getattr(shape, name)}"
        for name in _SAME_WEIGHTS
        if getattr(original, name) != getattr(shape, name)
    ]
    if differ:
        raise CheckpointError(
            f"{folder / CONFIG} is the file of another model: {'; '.join(differ)}. "
            f"Name the folder of the original model with --hf-folder."
        )
    name = "dtype" if "dtype" in found else "torch_dtype"
    return found | {"vocab_size": shape.vocab_size, name: dtype_name(dtype)}


def write_config(content: dict[str, Any], folder: Path) -> None:
    """Write config.json."""
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def copy(source: Path | None, target: Path, tokenizer: Path | None = None) -> None:
    """Copy generation config and tokenizer.

    Args:
        source: the folder that has them, if there is one.
        tokenizer: where the tokenizer is instead: its folder, or a file in it.
    """
    target.mkdir(exist_ok=True)
    if tokenizer is not None and not tokenizer.is_dir():
        tokenizer = tokenizer.parent
    for folder, patterns in ((source, _OTHERS), (tokenizer or source, _TOKENIZER)):
        if folder is not None:
            for file in (file for pattern in patterns for file in folder.glob(pattern)):
                shutil.copyfile(file, target / file.name)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG} cannot be read: {error}.") from error
