"""Which Megatron is there, and whether it is a supported one."""

import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from ascend_patch.compat import upstream
from ascend_patch.engine.errors import AscendPatchError

INFO = "MAJOR = {}\nMINOR = {}\nPATCH = {}\nPRE_RELEASE = '{}'\n__version__ = '.'.join(map(str, ()))\n"


def megatron(folder: Path, *numbers: object) -> Path:
    core = folder / "megatron" / "core"
    core.mkdir(parents=True)
    (core / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (core / "package_info.py").write_text(INFO.format(*numbers))
    return folder


def test_locates_the_installed_one_without_importing_it() -> None:
    imported = "megatron.core" in sys.modules
    found = upstream.locate()
    assert found.version == version("megatron-core")
    assert (found.path / "megatron" / "core" / "__init__.py").is_file()
    assert ("megatron.core" in sys.modules) is imported


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [((0, 17, 1, ""), "0.17.1"), ((0, 20, 0, "rc0"), "0.20.0rc0"), ((0, 16, 2, ".dev3"), "0.16.2.dev3")],
)
def test_version_of_a_checkout(tmp_path: Path, numbers: tuple, expected: str) -> None:
    assert upstream.at(megatron(tmp_path, *numbers)) == upstream.Upstream(expected, tmp_path)


def test_no_megatron(tmp_path: Path) -> None:
    with pytest.raises(AscendPatchError, match=f"{tmp_path} holds no Megatron"):
        upstream.at(tmp_path)


def test_unreadable_version(tmp_path: Path) -> None:
    (megatron(tmp_path, 0, 17, 1, "") / "megatron/core/package_info.py").write_text("MAJOR = 0\n")
    with pytest.raises(AscendPatchError, match="does not state 'MINOR'"):
        upstream.at(tmp_path)


@pytest.mark.parametrize("release", ["0.16.1", "0.17.1", "0.18.2", "0.19.0", "0.19.2", "0.19.3rc0"])
def test_supported(release: str) -> None:
    upstream.require_supported(upstream.Upstream(release, Path("/checkout")))


@pytest.mark.parametrize("release", ["0.12.1", "0.16.0", "0.20.0", "0.20.0rc0", "1.0"])
def test_unsupported(release: str) -> None:
    with pytest.raises(AscendPatchError, match=rf"{release} at /checkout .*ascend-patch drift --megatron /checkout"):
        upstream.require_supported(upstream.Upstream(release, Path("/checkout")))
