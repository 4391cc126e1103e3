"""The releases of Megatron-LM that tests run against, and how a child process gets one of them."""

import os
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = metadata.version("megatron-core")
#: The oldest supported release, the one between, and the newest: each carries ``megatron.training``.
RELEASES = ("0.17.1", "0.18.2", INSTALLED)


def location(release: str) -> Path | None:
    """The folder to put on the path for ``release``; None for the installed one, which is there already.

    Raises:
        FileNotFoundError: it has not been unpacked.
    """
    if release == INSTALLED:
        return None
    folder = ROOT / ".cache" / "megatron" / release
    if not (folder / "megatron" / "core").is_dir():
        raise FileNotFoundError(
            f"Megatron-LM {release} is not in {folder}. Run `make test`, or `tools/setup_megatron.sh {release}`."
        )
    return folder


def environment(release: str, **variables: str | int) -> dict[str, str]:
    """An environment for a child process that imports ``release``, with ``variables`` set, and one thread."""
    path = [str(ROOT), *([str(folder)] if (folder := location(release)) else [])]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ASCEND_PATCH")}
    environ |= {"PYTHONPATH": os.pathsep.join(reversed(path)), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return environ | {name: str(value) for name, value in variables.items()}
