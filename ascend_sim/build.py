"""The simulator's libraries: compiled on first use for the installed torch and torch_npu, and kept.

torch_npu links against six libraries of CANN. ``libascendcl.so`` and ``libacl_op_compiler.so`` are written here
(``csrc``); the other four only have to exist. A symbol that the wheel needs and ``csrc`` does not define becomes a
function that says its own name on standard error and fails.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from ascend_sim.settings import cache_directory

SOURCES = Path(__file__).parent / "csrc"
TORCH_NPU = {"2.9": "2.9.1"}
"""The release of torch_npu that goes with a torch minor release, of those the simulator was tested with."""

# Libraries that torch_npu names and of which it calls nothing, or only what libascendcl.so defines here.
_EMPTY = ("hccl", "ge_runner", "graph", "acl_tdt_channel")
# Symbols of CANN, as opposed to those of torch, Python and C++.
_CANN = ("acl", "rt", "Msprof", "Hccl", "hccl", "ge")
# These describe a call for aclopCompileAndExecute, which is refused: nothing to say about them one by one.
_DESCRIBE = (
    "aclCreateDataBuffer", "aclCreateTensorDesc", "aclDestroyDataBuffer", "aclDestroyTensorDesc", "aclGetTensorDesc",
    "aclSetTensor", "aclopCreateAttr", "aclopDestroyAttr", "aclopSetAttr",
)  # fmt: skip
_NOT_SUPPORTED = 207000  # ACL_ERROR_RT_FEATURE_NOT_SUPPORT


class BuildError(RuntimeError):
    """The simulator cannot be built here; the message says what to do."""


@dataclass(frozen=True)
class Pair:
    """A torch and a torch_npu that go together.

    Args:
        torch: directory of the package ``torch``.
        torch_npu: directory of the package ``torch_npu``.
    """

    torch: Path
    torch_version: str
    torch_npu: Path
    torch_npu_version: str

    def __str__(self) -> str:
        return f"torch {self.torch_version}, torch_npu {self.torch_npu_version}"


def find_pair(*, download: bool) -> Pair:
    """The installed torch, and the torch_npu for it: the installed one, or a copy in the cache.

    torch_npu in the environment itself would make every ``import torch`` fail where CANN is missing, so that a
    machine without an NPU is better served by the copy, which only ``ascend-sim run`` puts on the path.

    Args:
        download: fetch the wheel with pip if there is none.

    Raises:
        BuildError: there is no torch, or no torch_npu that goes with it.
    """
    torch = _package("torch")
    if torch is None:
        raise BuildError("torch is not installed in this Python environment. Run `pip install torch==2.9.1`.")
    torch_version = importlib.metadata.version("torch").split("+")[0]
    minor = ".".join(torch_version.split(".")[:2])
    installed = _package("torch_npu")
    if installed is not None:
        version = importlib.metadata.version("torch_npu")
        if Version(version).release[:2] != Version(torch_version).release[:2]:
            raise BuildError(
                f"torch_npu {version} is installed beside torch {torch_version}; the first two numbers must agree. "
                f"Run `pip install --no-deps torch_npu=={TORCH_NPU.get(minor, minor + '.*')}`."
            )
        return Pair(torch, torch_version, installed, version)
    if minor not in TORCH_NPU:
        raise BuildError(
            f"torch {torch_version} is installed; the simulator was tested with {', '.join(TORCH_NPU)}. Install one "
            f"of these, or the torch_npu of your choice for {minor}, which is then taken as it is."
        )
    version = TORCH_NPU[minor]
    directory = cache_directory() / f"torch_npu-{version}-{sysconfig.get_config_var('SOABI')}"
    if not directory.is_dir():
        if not download:
            raise BuildError(f"torch_npu {version} is not there yet. `ascend-sim run` downloads it (41 MB).")
        _download(version, directory)
    return Pair(torch, torch_version, directory / "torch_npu", version)


def libraries(pair: Pair) -> Path:
    """The directory that :func:`build` fills for this pair and these sources, whether it exists or not."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    digest.update(Path(__file__).read_bytes())
    name = f"torch-{pair.torch_version}-torch_npu-{pair.torch_npu_version}-{sysconfig.get_config_var('SOABI')}"
    return cache_directory() / f"{name}-{digest.hexdigest()[:12]}"


def build(pair: Pair) -> Path:
    """Compile the libraries unless they are there; processes that ask at the same time wait for the first.

    Returns:
        The directory that holds them.

    Raises:
        BuildError: a tool is missing or the compiler fails; nothing is left behind.
    """
    directory = libraries(pair)
    if directory.is_dir():
        return directory
    for tool in ("g++", "nm"):
        if shutil.which(tool) is None:
            raise BuildError(f"{tool} is needed to build the simulator. Install g++ and binutils.")
    with _filled_once(directory) as target:
        if target is not None:
            _say(f"building the simulator for {pair} (once, about a minute)")
            _compile(pair, target)
    return directory


def _compile(pair: Pair, target: Path) -> None:
    compiler = ["g++", "-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-w"]
    acl = pair.torch_npu / "include" / "third_party" / "acl" / "inc"
    torch = [f"-I{pair.torch / 'include'}", f"-I{pair.torch / 'include/torch/csrc/api/include'}"]
    python = [f"-I{sysconfig.get_path('include')}", "-DUSE_C10D_GLOO", "-DTORCH_EXTENSION_NAME=ascend_sim_hccl"]
    includes = {
        "acl_runtime": [f"-I{acl}"],
        "op_compiler": [],
        "counters": [*torch, f"-I{pair.torch_npu / 'include'}", f"-I{acl}", "-fvisibility=default"],
        "dispatch": [*torch, "-fvisibility=default"],
        "hccl": [*torch, *python],
    }

    def compiled(name: str) -> str:
        source, result = SOURCES / f"{name}.cpp", target / f"{name}.o"
        _run([*compiler, *includes[name], "-c", str(source), "-o", str(result)])
        return str(result)

    def link(library: str, *arguments: str) -> None:
        _run(["g++", "-shared", "-fPIC", "-o", str(target / library), f"-Wl,-soname,{library}", *arguments])

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # torch's headers take most of the time
        objects = dict(zip(includes, pool.map(compiled, includes), strict=True))
    refused = target / "refused.cpp"
    defined = _symbols(Path(objects["acl_runtime"]), "--defined-only", "--extern-only")
    refused.write_text(_refusing(_needed_symbols(pair) - defined))
    link("libascendcl.so", objects["acl_runtime"], str(refused))
    link("libacl_op_compiler.so", objects["op_compiler"])
    for name in _EMPTY:
        link(f"lib{name}.so")
    libraries = [f"-L{pair.torch / 'lib'}", "-ltorch_cpu", "-lc10", f"-L{pair.torch_npu / 'lib'}", "-ltorch_npu"]
    libraries += ["-Wl,--allow-shlib-undefined"]  # what the wheel takes from CANN is found when it is loaded
    link("libascend_sim.so", objects["dispatch"], objects["counters"], *libraries)
    link("ascend_sim_hccl.so", objects["hccl"], f"-L{target}", "-lascend_sim", "-ltorch_python", "-ltorch", *libraries)


def _needed_symbols(pair: Pair) -> set[str]:
    """What the wheel's libraries leave to CANN."""
    files = [*(pair.torch_npu / "lib").glob("libtorch_npu.so"), *pair.torch_npu.glob("_C*.so")]
    files += [*(pair.torch_npu / "lib").glob("libnpu_profiler.so")]
    symbols = set().union(*(_symbols(file, "--dynamic", "--undefined-only") for file in files))
    return {symbol for symbol in symbols if symbol.startswith(_CANN)}


def _symbols(file: Path, *options: str) -> set[str]:
    lines = _run(["nm", *options, "--format=posix", str(file)]).splitlines()
    return {line.split()[0].split("@")[0] for line in lines if line.strip()}


def _refusing(symbols: set[str]) -> str:
    """C++ source of a function for each symbol; those that only describe a call return null in silence."""
    lines = ["#include <cstdio>"]
    for symbol in sorted(symbols):
        if symbol.startswith(_DESCRIBE):
            body = "return 0;"
        else:
            message = f"ascend_sim: {symbol} of AscendCL is not simulated\\n"
            body = f'std::fputs("{message}", stderr); return {_NOT_SUPPORTED};'
        lines.append(f'extern "C" __attribute__((visibility("default"))) long {symbol}() {{ {body} }}')
    return "\n".join(lines) + "\n"


def _package(name: str) -> Path | None:
    """Where a package lies, without importing it."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _download(version: str, directory: Path) -> None:
    with _filled_once(directory) as target:
        if target is not None:
            _say(f"downloading torch_npu {version} (41 MB)")
            _run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
                 + ["--target", str(target), f"torch_npu=={version}"])  # fmt: skip


@contextlib.contextmanager
def _filled_once(directory: Path) -> Iterator[Path | None]:
    """A temporary directory that becomes ``directory`` if the block succeeds; None if another process was first."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with open(directory.parent / f".{directory.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if directory.is_dir():
            yield None
            return
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".new-") as temporary:
            filled = Path(temporary) / "filled"
            filled.mkdir()
            yield filled
            filled.rename(directory)


def _run(command: Sequence[str]) -> str:
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode != 0:
        message = process.stderr.strip() or process.stdout.strip()
        raise BuildError(f"This command failed ({process.returncode}): {' '.join(command)}\n{message}")
    return process.stdout


def _say(message: str) -> None:
    print(f"ascend-sim: {message}", file=sys.stderr, flush=True)
