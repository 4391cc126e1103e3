"""Reasons not to apply a patch that depend on the machine alone (``Patch.when``)."""

import importlib.util

from ascend_patch.engine.patch import Environment


def without_transformer_engine(environment: Environment) -> str | None:
    """Upstream's own fused path is used where the real TransformerEngine is installed (the reference chip)."""
    if importlib.util.find_spec("transformer_engine") is not None:
        return "the real TransformerEngine is installed and does this"
    return None


def without_fused_optimizer(environment: Environment) -> str | None:
    """Upstream uses TransformerEngine's or Apex's FusedAdam where it finds one.

    Apex without its CUDA extension ``amp_C``, as Ascend's own build of it is, has a FusedAdam that refuses to run.
    """
    if importlib.util.find_spec("apex") is not None and importlib.util.find_spec("amp_C") is not None:
        return "Apex is installed with its CUDA extensions and does this"
    return without_transformer_engine(environment)


def where_eager(environment: Environment) -> str | None:
    """Upstream's element-wise fusions are ``torch.compile``'s, which needs CUDA."""
    return "upstream's compiled fusion does this on cuda" if environment.device == "cuda" else None


def on_cpu(environment: Environment) -> str | None:
    """For what only the translation of ``torch.cuda`` to the host needs."""
    return None if environment.device == "cpu" else f"the device is {environment.device}, not cpu"


def on_npu(environment: Environment) -> str | None:
    """For what only torch_npu needs."""
    return None if environment.device == "npu" else f"the device is {environment.device}, not npu"
