"""What is installed on this machine, as data: read from metadata and folders, nothing heavy is imported."""

from __future__ import annotations

import ast
import importlib.metadata
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path

from packaging.utils import canonicalize_name

from ascend_patch.config import variable_of_others


@dataclass(frozen=True)
class Machine:
    """One machine, real (`Machine.here()`) or made up by a test.

    Attributes:
        python: the interpreter's version.
        distributions: canonical name -> version of every installed distribution.
        path: folders that Python imports from, in order; the current folder is among them.
        library_path: folders of LD_LIBRARY_PATH.
        cann: folder of the CANN toolkit, or None when the environment names none.
        programs: of the programs asked for, those that are there.
        backends: distributions' entry points in the group `torch.backends`.
        autoload: TORCH_DEVICE_BACKEND_AUTOLOAD; PyTorch calls no entry point when it is "0".
    """

    python: tuple[int, int] = sys.version_info[:2]
    distributions: Mapping[str, str] = field(default_factory=dict)
    path: tuple[Path, ...] = ()
    library_path: tuple[Path, ...] = ()
    cann: Path | None = None
    programs: frozenset[str] = frozenset()
    backends: frozenset[str] = frozenset()
    autoload: str = ""

    @classmethod
    def here(cls) -> Machine:
        """This machine, with the environment of this process."""
        distributions: dict[str, str] = {}
        for found in importlib.metadata.distributions():
            distributions.setdefault(canonicalize_name(found.metadata["Name"] or ""), found.version)
        path = dict.fromkeys(Path(entry or ".").resolve() for entry in (*sys.path, "."))
        libraries = variable_of_others("LD_LIBRARY_PATH").split(":")
        cann = variable_of_others("ASCEND_HOME_PATH") or variable_of_others("ASCEND_TOOLKIT_HOME")
        return cls(
            distributions=distributions,
            path=tuple(folder for folder in path if folder.is_dir()),
            library_path=tuple(Path(entry) for entry in libraries if entry),
            cann=Path(cann) if cann else None,
            programs=frozenset(name for name in ("g++", "make") if shutil.which(name)),
            backends=frozenset(point.name for point in importlib.metadata.entry_points(group="torch.backends")),
            autoload=variable_of_others("TORCH_DEVICE_BACKEND_AUTOLOAD"),
        )

    def importable(self, name: str) -> bool:
        """Whether a top-level package or module of that name would be found; nothing is imported."""
        spec = PathFinder.find_spec(name, [str(folder) for folder in self.path])
        # A bare folder is a namespace package to Python, but not an installed one: a checkout's name, say.
        return spec is not None and spec.origin is not None

    def holding(self, part: str) -> list[Path]:
        """Folders of the path that hold the file `part`, "torch/version.py"; the first one is used."""
        return [folder for folder in self.path if (folder / part).is_file()]

    def torch_cuda(self) -> str | None:
        """CUDA version that the installed PyTorch was built for, None for a CPU build or without PyTorch."""
        for folder in self.holding("torch/version.py")[:1]:
            for node in ast.parse((folder / "torch/version.py").read_text(encoding="utf-8")).body:
                target = getattr(node, "target", None) or next(iter(getattr(node, "targets", [])), None)
                value = getattr(node, "value", None)
                if isinstance(target, ast.Name) and target.id == "cuda" and isinstance(value, ast.Constant):
                    return value.value if isinstance(value.value, str) else None
        return None
