"""Where the source of an upstream module comes from: this process's path, a folder or a wheel.

Nothing is imported.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable, Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path, PurePosixPath
from typing import Any

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
        parent_is_loaded = end == 1 or ".".join(parts[: end - 1]) in sys.modules
        spec = _find(name, path) if parent_is_loaded else _find_in_folders(name, path or [])
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


def _find_in_folders(name: str, path: Iterable[str]) -> ModuleSpec | None:
    """Python's own search below a package that is not imported; its finder needs the parent for a namespace."""
    namespace = []
    for entry in path:
        found = Path(entry) / name.rpartition(".")[2]
        for file, is_package in ((found / "__init__.py", True), (found.with_name(found.name + ".py"), False)):
            if file.is_file():
                spec = ModuleSpec(name, None, origin=str(file), is_package=is_package)
                if is_package:
                    spec.submodule_search_locations = [str(found)]
                return spec
        if found.is_dir():
            namespace.append(str(found))
    if not namespace:
        return None
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = namespace
    return spec


def _find(name: str, path: Any) -> ModuleSpec | None:
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        try:
            spec = find(name, path) if find is not None else None
        except KeyError:  # PathFinder looks the parent of a package without `__init__.py` up in sys.modules
            spec = _namespace_package(name, path)
        if spec is not None:
            return spec
    return None


def _namespace_package(name: str, path: Iterable[str]) -> ModuleSpec:
    spec = ModuleSpec(name, None, is_package=True)
    folders = [Path(entry) / name.rpartition(".")[2] for entry in path]
    spec.submodule_search_locations = [str(folder) for folder in folders if folder.is_dir()]
    return spec
