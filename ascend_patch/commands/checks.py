"""The checks of `ascend-patch doctor`: each looks at one trap and says what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.version import Version

from ascend_patch.commands.machine import Machine
from ascend_patch.compat import torch_npu, upstream
from ascend_patch.config import Config
from ascend_patch.engine.contract import Contract
from ascend_patch.engine.errors import AscendPatchError

Level = Literal["ok", "warning", "error"]
Check = Callable[[Machine], "Iterator[Finding]"]

MINIMUM_PYTHON = (3, 12)
# Beside megatron-core, to train with upstream's pretrain_gpt.py.
TRAINING_NEEDS = ("einops", "psutil", "pybind11", "sentencepiece", "tiktoken", "transformers")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what was looked at.
        level: "error" stops a run, "warning" may.
        found: what is there.
        next_step: what to do; "" when all is well.
    """

    check: str
    level: Level
    found: str
    next_step: str = ""


def python(machine: Machine) -> Iterator[Finding]:
    """Is this Python new enough?"""
    found = ".".join(map(str, machine.python))
    if machine.python < MINIMUM_PYTHON:
        needed = ".".join(map(str, MINIMUM_PYTHON))
        yield Finding("Python", "error", found, f"Make a virtual environment with Python {needed} or newer.")
    else:
        yield Finding("Python", "ok", found)


def torch(machine: Machine) -> Iterator[Finding]:
    """Is PyTorch there, and do torch_npu and CANN go with it?"""
    version = machine.distributions.get("torch")
    if version is None:
        yield Finding("PyTorch", "error", "not installed", "Run `pip install torch`.")
        return
    cuda = machine.torch_cuda()
    yield Finding("PyTorch", "ok", f"{version} ({f'CUDA {cuda}' if cuda else 'no CUDA'})")
    npu = machine.distributions.get("torch-npu")
    if npu is None:
        yield Finding("torch_npu", "ok", "not installed; not needed for cpu and cuda")
        return
    yield _pairing(machine, version, npu, cuda)
    yield from _cann(machine, npu)


def _pairing(machine: Machine, version: str, npu: str, cuda: str | None) -> Finding:
    """Do torch_npu, PyTorch and Python go together?"""
    minor = torch_npu.minor(version)
    pythons, python = torch_npu.PYTHONS.get(minor, ()), ".".join(map(str, machine.python))
    if not minor or torch_npu.minor(npu) != minor:
        return Finding("torch_npu", "error", f"{npu} beside PyTorch {version}", torch_npu.advice(version))
    if cuda and Version(minor).release >= torch_npu.FIRST_TORCH_WITH_ALLOCATOR_CLASH:
        step = "Install the CPU build of PyTorch: its index is https://download.pytorch.org/whl/cpu."
        found = f"{npu} cannot be loaded beside a CUDA build of PyTorch {version}"
        return Finding("torch_npu", "error", found, step)
    if pythons and python not in pythons:
        step = f"Use Python {', '.join(pythons)}: for others torch_npu is not published."
        return Finding("torch_npu", "warning", f"{npu} on Python {python}", step)
    if torch_npu.torch_of(npu) != version.partition("+")[0]:
        found = f"{npu} is built for PyTorch {torch_npu.torch_of(npu)}, and this is {version}"
        return Finding("torch_npu", "warning", found, torch_npu.advice(version))
    return Finding("torch_npu", "ok", npu)


def _cann(machine: Machine, npu: str) -> Iterator[Finding]:
    if any((folder / "libhccl.so").exists() for folder in machine.library_path):
        yield _cann_pairing(machine.cann, npu)
        return
    where = f"{machine.cann} is set up" if machine.cann else "no toolkit is set up in this shell"
    yield Finding(
        "CANN",
        "error",
        f"{where}, and libhccl.so is not on LD_LIBRARY_PATH: torch_npu and transformers cannot be imported",
        "Run `source /usr/local/Ascend/ascend-toolkit/set_env.sh`, install CANN if there is no such file, or "
        "on a machine without NPUs `pip uninstall torch_npu`.",
    )


def _cann_pairing(toolkit: Path | None, npu: str) -> Finding:
    found, needed = _cann_version(toolkit), torch_npu.cann_of(npu)
    if not found:
        return Finding("CANN", "ok", f"at {toolkit or 'LD_LIBRARY_PATH'}, its version is not stated")
    if torch_npu.older(found, needed):
        step = f"Install CANN {needed} or newer, or an older torch_npu: docs/ascend.md has the pairs."
        return Finding("CANN", "warning", f"{found} is older than {needed}, which torch_npu {npu} goes with", step)
    return Finding("CANN", "ok", f"{found} at {toolkit}")


def _cann_version(toolkit: Path | None) -> str:
    for file in sorted(toolkit.glob("*/ascend_toolkit_install.info")) if toolkit else []:
        for line in file.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition("=")
            if name == "version":
                return value.strip()
    return ""


def megatron(machine: Machine) -> Iterator[Finding]:
    """Is there exactly one Megatron-LM, and is it supported?"""
    cores = machine.holding("megatron/core/__init__.py")
    if not cores:
        step = "Run `pip install 'megatron-core>=0.17,<0.20'`, or put a Megatron-LM checkout on PYTHONPATH."
        yield Finding("Megatron-LM", "error", "not found", step)
        return
    try:
        found = upstream.at(cores[0])
        upstream.require_supported(found)
        yield Finding("Megatron-LM", "ok", f"{found.version} at {found.path}")
    except AscendPatchError as error:
        yield Finding("Megatron-LM", "error", str(error), "Install a supported release.")
    if len(cores) > 1:
        where = ", ".join(map(str, cores))
        step = "Keep one: `pip uninstall megatron-core`, or take the other off PYTHONPATH and leave its folder."
        yield Finding("two Megatrons", "warning", f"{where}; the first one is used", step)
    trainings = machine.holding("megatron/training/__init__.py") or machine.holding("megatron/training/training.py")
    if not trainings:
        step = "To train, take a release from 0.17.1 on, or a Megatron-LM checkout."
        yield Finding("megatron.training", "warning", "not part of this installation", step)
    elif trainings[0] != cores[0]:
        step = "Let both come from one place: put that folder first on PYTHONPATH, or uninstall megatron-core."
        yield Finding("megatron.training", "error", f"from {trainings[0]}, but megatron.core from {cores[0]}", step)


def transformer_engine(machine: Machine) -> Iterator[Finding]:
    """A TransformerEngine that cannot run here changes what upstream builds."""
    installed = [name for name in machine.distributions if name.startswith("transformer-engine")]
    if installed:
        found = ", ".join(f"{name} {machine.distributions[name]}" for name in installed)
        step = f"It needs CUDA. On a machine without it: `pip uninstall {' '.join(installed)}`."
        yield Finding("TransformerEngine", "warning", found, step)
    elif machine.importable("transformer_engine"):
        step = "Remove it: a stand-in for the package switches on upstream code that needs the real one."
        yield Finding("TransformerEngine", "error", "importable, but no such distribution is installed", step)
    else:
        yield Finding("TransformerEngine", "ok", "not installed; not needed")


def apex(machine: Machine) -> Iterator[Finding]:
    """`pip install apex` gives another project of that name, or one without its compiled parts."""
    if not machine.importable("apex"):
        yield Finding("apex", "ok", "not installed; not needed")
    elif machine.importable("amp_C"):
        yield Finding("apex", "ok", "with amp_C")
    elif machine.holding("apex/optimizers/npu_fused_adam.py"):
        yield Finding("apex", "ok", "Ascend's, which has no amp_C; its optimizers are not used")
    else:
        step = "Run `pip uninstall apex`: upstream takes it for NVIDIA's, built with its extensions."
        yield Finding("apex", "error", "importable without its compiled part amp_C", step)


def optimizer(machine: Machine) -> Iterator[Finding]:
    """Which Adam does a run with ASCEND_PATCH=1 get?"""
    try:
        config = Config.from_environment()
    except AscendPatchError:
        return  # said by the check of ascend_patch
    if any(name.startswith("transformer-engine") for name in machine.distributions):
        yield Finding("optimizer", "ok", "TransformerEngine's FusedAdam")
    elif machine.importable("apex") and machine.importable("amp_C"):
        yield Finding("optimizer", "ok", "Apex's FusedAdam")
    elif "optimizer.adam" not in config.disabled:
        yield Finding("optimizer", "ok", f"ascend_patch's FusedAdam: {_adam_kernel(machine, config)}")
    else:
        theirs = "Apex's FusedAdam, which does not run" if machine.importable("apex") else "torch.optim.AdamW"
        step = "Leave optimizer.adam out of ASCEND_PATCH_DISABLE."
        found = f"{theirs}; with the distributed optimizer such a run cannot be resumed"
        yield Finding("optimizer", "warning", found, step)


def _adam_kernel(machine: Machine, config: Config) -> str:
    """What updates the parameters, as far as the machine tells without looking for its devices."""
    kernels = {"npu": "npu_apply_adam_w", "torch": "PyTorch's fused kernels", "reference": "plain PyTorch"}
    if "adam" in config.ops:
        return kernels.get(config.ops["adam"], config.ops["adam"])
    npu = "torch-npu" in machine.distributions and config.device in ("", "npu")
    return kernels["npu"] if npu else kernels["torch"]


def compiler(machine: Machine) -> Iterator[Finding]:
    """A checkout of Megatron-LM compiles its dataset helpers at the first start."""
    missing = sorted({"g++", "make"} - machine.programs)
    if missing:
        step = "Install them, for example `apt-get install g++ make`. A wheel of megatron-core does without."
        yield Finding("compiler", "warning", f"missing: {', '.join(missing)}", step)
    else:
        yield Finding("compiler", "ok", "g++, make")


def training_needs(machine: Machine) -> Iterator[Finding]:
    """Packages that upstream imports only on the way."""
    missing = [name for name in TRAINING_NEEDS if name not in machine.distributions]
    if missing:
        yield Finding("training needs", "warning", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    else:
        yield Finding("training needs", "ok", ", ".join(TRAINING_NEEDS))


def activation(machine: Machine) -> Iterator[Finding]:
    """Would ASCEND_PATCH=1 have an effect here?"""
    try:
        config = Config.from_environment()
        on = "ASCEND_PATCH=1 is set" if config.enabled else "ASCEND_PATCH is not set, so nothing is patched"
        Contract.load()
    except AscendPatchError as error:
        yield Finding("ascend_patch", "error", str(error), "Correct it, then run this command again.")
        return
    if "ascend_patch" not in machine.backends:
        step = "Run `pip install ascend-patch` (checkout: `pip install -e .`), or `python -m ascend_patch.run`."
        yield Finding("ascend_patch", "warning", "not installed as a package: ASCEND_PATCH=1 has no effect", step)
    elif machine.autoload == "0":
        step = "Unset it (torch_npu sets it when imported before torch), or use `python -m ascend_patch.run`."
        found = "TORCH_DEVICE_BACKEND_AUTOLOAD=0: ASCEND_PATCH=1 has no effect"
        yield Finding("ascend_patch", "warning", found, step)
    else:
        yield Finding("ascend_patch", "ok", on)


CHECKS: tuple[Check, ...] = (
    python,
    torch,
    megatron,
    transformer_engine,
    apex,
    optimizer,
    compiler,
    training_needs,
    activation,
)
