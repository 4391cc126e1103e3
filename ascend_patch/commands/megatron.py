"""A Megatron-LM to look at without importing it: the installed one, a folder, a wheel or a version."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from ascend_patch.compat import upstream
from ascend_patch.engine import sources
from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.engine.fingerprint import SourceTree

# The oldest releases have wheels for older Pythons only; their sources can be read all the same.
_WHEELS_FOR_PYTHON = ("3.12", "3.11")


@dataclass(frozen=True)
class Megatron:
    """One Megatron-LM.

    Attributes:
        version: as the wheel's name or `package_info.py` states it.
        origin: where it is, for people.
        tree: its sources.
    """

    version: str
    origin: str
    tree: SourceTree


def installed() -> Megatron:
    """The Megatron that `import megatron.core` would give here.

    Raises:
        AscendPatchError: there is none.
    """
    found = upstream.locate()
    return Megatron(found.version, str(found.path), SourceTree(sources.installed))


def resolve(value: str) -> Megatron:
    """The Megatron that `value` means: "installed", a folder, a wheel file or a version to download.

    Raises:
        AscendPatchError: it is none of these, holds no Megatron, or cannot be downloaded.
    """
    if value == "installed":
        return installed()
    path = Path(value)
    if path.is_dir():
        found = upstream.at(path.resolve())
        return Megatron(found.version, value, SourceTree(sources.folder(path)))
    if path.suffix == ".whl" and path.is_file():
        return _from_wheel(path)
    try:
        version = Version(value)
    except InvalidVersion:
        raise AscendPatchError(
            f"--megatron {value} is neither a folder, nor a wheel file, nor a version. Give the folder above "
            "`megatron/`, a megatron_core-*.whl, a release such as 0.19.2, or `installed`."
        ) from None
    return _download(version)


def _from_wheel(path: Path) -> Megatron:
    try:
        name, version, _, _ = parse_wheel_filename(path.name)
    except (InvalidWheelFilename, InvalidVersion) as error:
        raise AscendPatchError(f"{path} does not have a wheel's name: {error}. Give it its original name.") from error
    if name != "megatron-core":
        raise AscendPatchError(f"{path} is a wheel of {name}, not of megatron-core.")
    return Megatron(str(version), path.name, SourceTree(sources.wheel(path)))


def _download(version: Version) -> Megatron:
    with tempfile.TemporaryDirectory() as folder:
        for python in _WHEELS_FOR_PYTHON:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            command += ["--python-version", python, "--dest", folder, f"megatron-core=={version}"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            wheels = list(Path(folder).glob("*.whl"))
            if done.returncode == 0 and wheels:
                return _from_wheel(wheels[0])  # an open file outlives its folder
    reason = (done.stderr.strip() or "pip gave no reason").splitlines()[-1]
    raise AscendPatchError(
        f"megatron-core {version} could not be downloaded: {reason} Download the wheel elsewhere and name "
        "its file, or give a version that `pip index versions megatron-core` lists."
    )
