"""The same module text from a folder, a wheel and the path of this process, and nothing gets imported."""

import sys
import zipfile

import pytest

from ascend_patch.engine import sources

FILES = {
    "UP/core/__init__.py": "raise RuntimeError('imported')\n",
    "UP/core/x.py": "x = 1\n",
    "UP/core/plain/y.py": "y = 1\n",
    "UP/data.txt": "",
}


@pytest.fixture(params=["installed", "folder", "wheel"])
def read(request, stubs, tmp_path):
    stubs.write(FILES)
    if request.param == "installed":
        return sources.installed
    if request.param == "folder":
        return sources.folder(stubs.folder)
    with zipfile.ZipFile(tmp_path / "up.whl", "w") as archive:
        for name in FILES:
            archive.write(stubs.folder / stubs.named(name), stubs.named(name))
    return sources.wheel(tmp_path / "up.whl")


def test_modules_packages_and_what_is_neither(stubs, read):
    assert read(stubs.named("UP.core.x")) == sources.Source(b"x = 1\n", False)
    assert read(stubs.named("UP.core.plain.y")) == sources.Source(b"y = 1\n", False)
    assert read(stubs.named("UP.core")).is_package
    for absent in ("UP", "UP.core.plain", "UP.data", "UP.core.gone", "UP.gone.x", "UP_gone"):
        assert read(stubs.named(absent)) is None, absent
    assert not [name for name in sys.modules if name.startswith(stubs.up)]


def test_namespace_package_over_two_folders(stubs, tmp_path, monkeypatch):
    stubs.write({"UP/core/__init__.py": "here = 1\n", "second/UP/training/__init__.py": "here = 2\n"})
    monkeypatch.syspath_prepend(tmp_path / "second")
    assert sources.installed(stubs.named("UP.core")).data == b"here = 1\n"
    assert sources.installed(stubs.named("UP.training")).data == b"here = 2\n"


def test_module_without_python_source():
    assert sources.installed("zlib") is None
    assert sources.installed("sys") is None


def test_namespace_below_a_package_that_is_not_imported(tmp_path, monkeypatch):
    folder = tmp_path / "ap_outer" / "inner" / "space"  # `space` has no __init__.py
    folder.mkdir(parents=True)
    for package in (tmp_path / "ap_outer", tmp_path / "ap_outer" / "inner"):
        (package / "__init__.py").write_text("")
    (folder / "leaf.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    source = sources.installed("ap_outer.inner.space.leaf")
    assert source is not None and source.data == b"x = 1\n"
    assert sources.installed("ap_outer.inner.space.missing") is None
    assert "ap_outer" not in sys.modules
