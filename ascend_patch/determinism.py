"""Deterministic computing: what must be in the environment before a device starts, and one call that seeds all.

Three doors lead here. ``--deterministic-mode`` is upstream's flag. ``ASCEND_PATCH_DETERMINISTIC=1`` does the same
for a script that is not to be touched. :func:`seed_all` is for a script that is one's own. Each sets what is
missing in the environment, and stops where something else is set: a run that was asked to be deterministic never
silently is not.

What is set decides nothing else: the results are those of a run without, as far as the kernels are the same.
"""

import os
import sys
import warnings
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from ascend_patch.engine.errors import AscendPatchError


@dataclass(frozen=True)
class Setting:
    """One environment variable that decides whether a library repeats its results bit by bit.

    Attributes:
        variable: its name.
        reader: who reads it, for messages.
        accepted: its deterministic values, the first of which is set where there is none; of a list, as ``NCCL_ALGO``
            may be, every item must be one.
    """

    variable: str
    reader: str
    accepted: tuple[str, ...]

    def problem(self, environ: Mapping[str, str]) -> str | None:
        """Why the value that is there does not do, or None."""
        found = environ.get(self.variable)
        if found is None or all(item.strip() in self.accepted for item in found.split(",")):
            return None
        return f"{self.variable}={found!r} ({self.reader}; deterministic: {' or '.join(self.accepted)})"


#: Every device's: a variable that the device at hand does not read changes nothing. The first is documented by CANN;
#: the other Ascend ones are what projects on Ascend set (docs/ascend.md). NVIDIA's are those that upstream's
#: megatron/training/determinism.py accepts.
SETTINGS = (
    Setting("HCCL_DETERMINISTIC", "HCCL: sums between ranks", ("true", "True", "TRUE", "strict")),
    Setting("LCCL_DETERMINISTIC", "ATB's communication", ("1",)),
    Setting("CLOSE_MATMUL_K_SHIFT", "CANN: matrix products", ("1",)),
    Setting("ATB_MATMUL_SHUFFLE_K_ENABLE", "ATB: matrix products", ("0",)),
    Setting("ATB_LLM_LCOC_ENABLE", "ATB: communication within matrix products", ("0",)),
    Setting("NCCL_ALGO", "NCCL: sums between ranks", ("Ring", "CollnetDirect", "CollnetChain", "^NVLS")),
    Setting("CUBLAS_WORKSPACE_CONFIG", "cuBLAS: matrix products", (":4096:8", ":16:8")),
    Setting("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "TransformerEngine: attention", ("0",)),
)

HASH_SEED = "PYTHONHASHSEED"
"""Read by Python when it starts: set here, it reaches the processes that this one starts."""


def prepare(environ: MutableMapping[str, str] = os.environ) -> list[str]:
    """Set what is missing of :data:`SETTINGS` and ``PYTHONHASHSEED``, in ``environ``; nothing if anything conflicts.

    Returns:
        The variables that were set, in order.

    Raises:
        AscendPatchError: variables hold other values; all of them are named.
    """
    conflicts = [problem for setting in SETTINGS if (problem := setting.problem(environ))]
    if not environ.get(HASH_SEED, "0").isdigit():
        conflicts.append(f"{HASH_SEED}={environ[HASH_SEED]!r} (Python: the order of sets; a number is deterministic)")
    if conflicts:
        raise AscendPatchError(
            f"Deterministic computing was asked for, but the environment says otherwise: {'; '.join(conflicts)}. "
            "Unset these variables, or give them one of these values."
        )
    wanted = {setting.variable: setting.accepted[0] for setting in SETTINGS} | {HASH_SEED: "0"}
    missing = [variable for variable in wanted if variable not in environ]
    for variable in missing:
        environ[variable] = wanted[variable]
    return missing


def enable() -> None:
    """Prepare the environment and make PyTorch choose deterministic kernels, or raise where there are none.

    Raises:
        AscendPatchError: see :func:`prepare`; or process groups exist already, and a variable that HCCL and NCCL
            read when they are made was not set.
    """
    import torch

    late = torch.distributed.is_available() and torch.distributed.is_initialized()
    set_now = prepare()
    if late and set_now:
        for variable in set_now:
            del os.environ[variable]
        raise AscendPatchError(
            "Deterministic computing was asked for after the process groups were made, and "
            f"{', '.join(set_now)} {'was' if len(set_now) == 1 else 'were'} not set when they were. Ask before "
            "torch.distributed is initialised, or set ASCEND_PATCH_DETERMINISTIC=1 in the environment."
        )
    if HASH_SEED in set_now and sys.flags.hash_randomization:
        warnings.warn(
            f"{HASH_SEED} was not set when this Python started, so that the order of its sets of strings varies. "
            "PyTorch and Megatron-LM do not depend on it. `export PYTHONHASHSEED=0` fixes it too.",
            stacklevel=2,
        )
    torch.use_deterministic_algorithms(True)


def seed_all(seed: int = 1234, mode: bool = True) -> None:
    """Seed Python, NumPy, PyTorch and the device; with ``mode`` make the computation deterministic too.

    The workers of a DataLoader take their seeds from PyTorch's. Upstream seeds its ranks again when it starts, by
    ``--seed``; a script that trains with it needs ``mode`` only.

    Args:
        seed: 0 to 2**32 - 1, which is what NumPy takes.
        mode: as ``--deterministic-mode``; see :func:`enable`.

    Raises:
        AscendPatchError: the seed is out of range, or see :func:`enable`.
    """
    import random

    import numpy
    import torch

    if not 0 <= seed < 2**32:
        raise AscendPatchError(f"seed_all(seed={seed}): a seed is a number from 0 to {2**32 - 1}.")
    if mode:
        enable()
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)  # the devices' generators too
