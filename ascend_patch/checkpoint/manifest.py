"""conversion.json: what a finished conversion wrote, and from what. It lies at the top of the new checkpoint."""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ascend_patch import __version__
from ascend_patch.checkpoint.dtypes import dtype_name, dtype_named
from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.shape import ModelShape
from ascend_patch.checkpoint.stored import Checkpoint

NAME = "conversion.json"


@dataclass(frozen=True)
class Manifest:
    """What a conversion wrote: enough to read it back and compare."""

    source: Mapping[str, Any]
    """Where the weights come from."""
    target: Mapping[str, Any]
    """Format, layout and vocabulary of what was written."""
    shape: ModelShape
    """Of the tensors that were copied: with the vocabulary of the source."""
    dtype: torch.dtype
    """Of what was written."""
    sha256: Mapping[str, str]
    """Canonical name -> checksum of the tensor's bytes, row-major, in ``dtype``."""

    def write(self, folder: Path, source: Checkpoint) -> None:
        """Write conversion.json. Each tensor is listed with the files of ``source`` that it came from."""
        dtype = dtype_name(self.dtype)
        tensors = {
            name: {
                "shape": shape,
                "dtype": dtype,
                "sha256": self.sha256[name],
                "source": sorted({str(piece.tensor.file.relative_to(source.folder)) for piece in source.pieces[name]}),
            }
            for name, shape in self.shape.tensors().items()
        }
        content = {
            "versions": {
                "ascend_patch": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "source": self.source,
            "target": self.target,
            "shape": asdict(self.shape),
            "dtype": dtype,
            "tensors": tensors,
        }
        (folder / NAME).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read conversion.json.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        file = folder / NAME
        try:
            content = json.loads(file.read_bytes())
            return cls(
                content["source"],
                content["target"],
                ModelShape(**content["shape"]),
                dtype_named(content["dtype"]),
                {name: entry["sha256"] for name, entry in content["tensors"].items()},
            )
        except OSError as error:
            raise CheckpointError(
                f"{file} cannot be read: {error.strerror}. Only what tools/checkpoint/util.py wrote can be verified."
            ) from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{file} is damaged ({error}). Convert again.") from error
