"""Which Megatron this process imports, and whether it is a supported one. Imports nothing of it."""

import ast
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from ascend_patch.engine.errors import AscendPatchError

#: From the oldest to the newest release whose symbols are recorded in ``patches/``.
SUPPORTED = SpecifierSet(">=0.16.1,<0.20", prereleases=True)


@dataclass(frozen=True)
class Upstream:
    """A Megatron on the path: ``version`` as its ``package_info.py`` states it, ``path`` the folder above
    ``megatron/``."""

    version: str
    path: Path


def locate() -> Upstream:
    """The Megatron that ``import megatron.core`` would give here, without importing it.

    Raises:
        AscendPatchError: there is none, or it does not say its version.
    """
    spec = importlib.util.find_spec("megatron")
    for folder in list(spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / "core" / "__init__.py").is_file():
            return at(Path(folder).parent)
    raise AscendPatchError(
        "No Megatron was found. Install the megatron-core package (0.17.1 or newer carries the training loop) "
        "or put a Megatron-LM checkout on PYTHONPATH."
    )


def at(path: Path) -> Upstream:
    """The Megatron in the folder ``path`` (a checkout, or an unpacked wheel)."""
    info = path / "megatron" / "core" / "package_info.py"
    if not info.is_file():
        raise AscendPatchError(f"{path} holds no Megatron: {info} is missing. Give the folder above `megatron/`.")
    constants: dict[str, object] = {}
    for node in ast.parse(info.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            constants.update({t.id: node.value.value for t in node.targets if isinstance(t, ast.Name)})
    try:
        version = "{MAJOR}.{MINOR}.{PATCH}{PRE_RELEASE}".format(**constants)
    except KeyError as missing:
        raise AscendPatchError(f"{info} does not state {missing}: not a Megatron this project knows.") from None
    return Upstream(str(Version(version)), path)


def require_supported(megatron: Upstream) -> None:
    """Raise :class:`AscendPatchError` unless ``megatron`` is in :data:`SUPPORTED`."""
    if Version(megatron.version) not in SUPPORTED:
        raise AscendPatchError(
            f"Megatron-LM {megatron.version} at {megatron.path} is outside the releases that ascend_patch supports "
            f"({SUPPORTED}). Use one of them, or see with `ascend-patch drift --megatron {megatron.path}` which "
            "patches would hold and set ASCEND_PATCH_ALLOW_DRIFT=1 to go on regardless."
        )


def has_dynamic_engine(version: str) -> bool:
    """Whether the dynamic inference engine of a release can serve :mod:`ascend_patch.generation`, not the static one.

    That of 0.16 has another interface.
    """
    return Version(version) >= Version("0.17.0")


def require_generation(megatron: Upstream) -> None:
    """Raise :class:`AscendPatchError` if ``megatron`` is a wheel of before 0.17: it has no ``megatron.training``."""
    if not has_dynamic_engine(megatron.version) and not (megatron.path / "megatron" / "training").is_dir():
        raise AscendPatchError(
            f"Megatron-LM {megatron.version} at {megatron.path} cannot generate or evaluate: it has no "
            "megatron.training, which loads a model. Use a release from 0.17.1 on, or put a Megatron-LM checkout on "
            "PYTHONPATH."
        )
