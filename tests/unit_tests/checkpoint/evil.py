"""Pickles that run code when they are unpickled: their code makes a file, which must never be there."""

import argparse
import builtins
import os
import subprocess
from pathlib import Path
from typing import Any


class Call:
    """Pickled, a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


class State:
    """Pickled, an object whose attributes hold a call."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def __reduce__(self) -> tuple:
        return argparse.Namespace, (), {"params_dtype": self.call}


def payloads(trace: Path) -> dict[str, tuple[Any, str]]:
    """Name -> an object that would make `trace` when it is unpickled, and the global that it needs for that."""
    touch = f"touch {trace}"
    system = Call(os.system, touch)
    return {
        "system": (system, "posix.system"),
        "nested": ({"model": [1, (2, {"weight": system})]}, "posix.system"),
        "attribute": ({"args": State(system)}, "posix.system"),
        "argument": (Call(argparse.Namespace, system), "posix.system"),
        "eval": (Call(eval, f"open({str(trace)!r}, 'w')"), "builtins.eval"),
        "exec": (Call(builtins.exec, f"open({str(trace)!r}, 'w')"), "builtins.exec"),
        "popen": (Call(subprocess.Popen, ["touch", str(trace)]), "subprocess.Popen"),
        "getattr": (Call(getattr, Path, "touch"), "builtins.getattr"),
    }
