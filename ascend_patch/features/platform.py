"""What upstream assumes of the machine, where it is not so."""

import importlib.util
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path

from ascend_patch.engine.patch import Patch


def compile_helpers(original: Callable) -> Callable:
    """Compile the dataset helpers only where they are not there yet, and for this interpreter.

    Upstream's Makefile asks ``python3`` where pybind11 is; in a virtual environment that is not activated that
    is somebody else's.
    """

    @wraps(original)
    def compile_if_missing() -> None:
        if importlib.util.find_spec("megatron.core.datasets.helpers_cpp") is None:
            path = os.environ.get("PATH", "")
            os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{path}"
            try:
                original()
            finally:
                os.environ["PATH"] = path

    return compile_if_missing


PATCHES = (
    Patch(
        id="data.compile_helpers",
        target="megatron.core.datasets.utils:compile_helpers",
        impl="ascend_patch.features.platform:compile_helpers",
        mode="wrap",
        upstream=">=0.16.1,<0.20",
        reason=(
            "The megatron-core wheel ships helpers_cpp compiled but no Makefile: `make` fails and the process exits."
        ),
        remove_when="upstream skips the compilation when the module can be imported.",
    ),
)
