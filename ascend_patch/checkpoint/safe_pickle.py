"""Reads a pickle without running anything: what it may name is listed here, and nothing is imported for it.

Classes of Megatron-LM and of others whose objects lie in checkpoints become `Record`s, which only hold what the pickle
says. So a checkpoint can be read where Megatron-LM is not installed, and its code cannot run because of a checkpoint.
"""

import argparse
import collections
import pickle
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from ascend_patch.checkpoint.errors import CheckpointError

RECORDS = (
    "io.BytesIO",
    "_io.BytesIO",
    "megatron",
    "mindspeed",
    "mindspeed_llm",
    "numpy",
    "pathlib",
    "signal",
    "torch.Tensor",
    "torch._C.Generator",
    "torch.distributed.checkpoint",
    "torch.nn.parameter.Parameter",
    "transformer_engine",
    "types.SimpleNamespace",
)
"""Classes, and packages of classes, that become records."""


class Record:
    """Stands for an object of a class that is not imported.

    Its attributes are those of the pickled object. `args` holds what the class was called with (of an enumeration: the
    value), `state` the pickled state where that is not a dictionary of attributes.
    """

    args: tuple

    def __new__(cls, *args: Any) -> "Record":
        record = super().__new__(cls)
        record.args = args
        return record

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)
        else:
            self.state = state

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__name__}>"


_PLAIN: dict[str, Any] = {
    "_codecs.encode": str.encode,
    "builtins.bytearray": bytearray,
    "builtins.bytes": bytes,
    "builtins.complex": complex,
    "builtins.frozenset": frozenset,
    "builtins.set": set,
    "collections.OrderedDict": collections.OrderedDict,
    "torch.Size": torch.Size,
    "torch.device": torch.device,
    "torch.serialization._get_layout": str,
    **{str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)},
}
"""Global -> what the pickle gets. A pickle can call it and set its attributes: neither has an effect that stays."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: IO[bytes], file: Path, names: Mapping[str, Any], persistent: Any, trust: bool) -> None:
        super().__init__(stream)
        self._file = file
        self._names = {**_PLAIN, **names}
        self._persistent = persistent
        self._trust = trust

    def find_class(self, module: str, name: str) -> Any:
        # Protocol 2, which torch.save uses, writes the names of Python 2.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        path = f"{module}.{name}"
        if path in self._names:
            return self._names[path]
        # A class of its own for each pickle: a pickle can set attributes of a class that it names.
        if path == "argparse.Namespace":
            return type(name, (argparse.Namespace,), {})
        if any(path == known or path.startswith(f"{known}.") for known in RECORDS):
            return type(name, (Record,), {"__module__": module})
        if self._trust:
            return super().find_class(module, name)
        raise CheckpointError(
            f"{self._file} is refused: reading it would call {path}, which no weights need and which could run any "
            f"code. Get the checkpoint as safetensors, or, if you trust whoever made it, allow its pickles with "
            f"--trust-pickle."
        )

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is None:
            raise pickle.UnpicklingError("a storage where none can be")
        return self._persistent(pid)


def load(
    stream: IO[bytes],
    file: Path,
    *,
    names: Mapping[str, Any] | None = None,
    persistent: Any = None,
    trust: bool = False,
) -> Any:
    """The object in a pickle.

    Args:
        stream: the pickle.
        file: the file that it comes from, for messages.
        names: more globals that the pickle may name (`module.name`), and what it gets for them. They must be
            functions or methods of this one reading.
        persistent: called with the persistent ids.
        trust: import and call whatever else the pickle names. It can do anything to this machine.

    Returns:
        The object. `argparse.Namespace` objects are of a subclass of it.

    Raises:
        CheckpointError: a global that is not allowed, which is named and not called; a damaged pickle.
    """
    try:
        return _Unpickler(stream, file, names or {}, persistent, trust).load()
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle can raise anything: its bytes are calls
        raise CheckpointError(
            f"{file}: its pickle cannot be read ({type(error).__name__}: {error}). The file is damaged or was not "
            f"written by PyTorch."
        ) from error
