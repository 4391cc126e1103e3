"""Where the source of an upstream module comes from: this process's path, a folder or a wheel.

Nothing is imported.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path, PurePosixPath

from ascend_patch.engine.fingerprint import Read, Source


def installed(module: str) -> Source | None:
    """Source of `module` as `import` would find it in this process, without importing it or its parents.

    Parents that are already imported are asked for their `__path__`, so that a package which extends its
    path, or a namespace package spread over several folders, is followed correctly.
    """
    spec = find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Source(Path(spec.origin).read_bytes(), spec.submodule_search_locations is not None)


def find_spec(module: str) -> ModuleSpec | None:
    """Like `importlib.util.find_spec`, which would import the parents of `module`."""
    path = None
    spec = None
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        name = ".".join(parts[:end])
        spec = _find(name, path)
        if spec is None:
            return None
        loaded = sys.modules.get(name)
        path = getattr(loaded, "__path__", None) or spec.submodule_search_locations or []
    return spec


def folder(root: Path) -> Read:
    """Sources below `root`, a checkout or an unpacked wheel."""
    return _by_path(lambda path: (root / path).read_bytes() if (root / path).is_file() else None)


def wheel(file: Path) -> Read:
    """Sources inside a wheel."""
    archive = zipfile.ZipFile(file)
    names = frozenset(archive.namelist())
    return _by_path(lambda path: archive.read(str(path)) if str(path) in names else None)


def _by_path(read: Callable[[PurePosixPath], bytes | None]) -> Read:
    def by_module(module: str) -> Source | None:
        path = PurePosixPath(*module.split("."))
        for candidate, is_package in (
            (path / "__init__.py", True),
            (path.with_name(path.name + ".py"), False),
        ):
            data = read(candidate)
            if data is not None:
                return Source(data, is_package)
        return None

    return by_module


def _find(name: str, path: object) -> ModuleSpec | None:
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        spec = find(name, path) if find is not None else None
        if spec is not None:
            return spec
    return None
