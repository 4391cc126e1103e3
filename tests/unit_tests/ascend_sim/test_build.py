"""Finding torch and torch_npu, and building once: what is there, what is missing, what is left behind."""

from pathlib import Path

import pytest

from ascend_sim import build
from ascend_sim.build import BuildError, Pair, find_pair


@pytest.fixture
def packages(monkeypatch, tmp_path):
    """Installed packages by name and version; nothing else exists, and the cache is empty."""
    monkeypatch.setenv("ASCEND_SIM_CACHE", str(tmp_path))
    versions: dict[str, str] = {"torch": "2.9.1+cu128"}
    monkeypatch.setattr(build, "_package", lambda name: Path(f"/{name}") if name in versions else None)
    monkeypatch.setattr(build.importlib.metadata, "version", versions.__getitem__)
    return versions


def test_an_installed_torch_npu_is_taken(packages):
    packages["torch_npu"] = "2.9.0"
    pair = find_pair(download=True)
    assert str(pair) == "torch 2.9.1, torch_npu 2.9.0"
    assert pair.torch_npu == Path("/torch_npu")


def test_a_torch_npu_for_another_torch(packages):
    packages["torch_npu"] = "2.8.0"
    with pytest.raises(BuildError, match=r"torch_npu 2\.8\.0 is installed beside torch 2\.9\.1.*torch_npu==2\.9\.1"):
        find_pair(download=True)


def test_no_torch(packages):
    packages.clear()
    with pytest.raises(BuildError, match="torch is not installed"):
        find_pair(download=True)


def test_a_torch_without_a_tested_torch_npu(packages):
    packages["torch"] = "2.4.0"
    with pytest.raises(BuildError, match=r"torch 2\.4\.0 is installed; the simulator was tested with 2\.9"):
        find_pair(download=True)


def test_nothing_is_downloaded_unasked(packages, monkeypatch):
    monkeypatch.setattr(build, "_run", lambda command: pytest.fail(f"ran {command}"))
    with pytest.raises(BuildError, match="`ascend-sim run` downloads it"):
        find_pair(download=False)


def test_a_failed_download_leaves_nothing(packages, monkeypatch, tmp_path):
    def fail(command):
        Path(command[command.index("--target") + 1], "half").touch()
        raise BuildError("no network")

    monkeypatch.setattr(build, "_run", fail)
    with pytest.raises(BuildError, match="no network"):
        find_pair(download=True)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_build_happens_once_and_a_failed_one_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("ASCEND_SIM_CACHE", str(tmp_path))
    pair = Pair(Path("/torch"), "2.9.1", Path("/torch_npu"), "2.9.1")
    built = []

    def compile_(pair, target):
        (target / "lib.so").touch()
        built.append(target)
        if len(built) == 1:
            raise BuildError("the compiler failed")

    monkeypatch.setattr(build, "_compile", compile_)
    with pytest.raises(BuildError):
        build.build(pair)
    assert not build.libraries(pair).exists()
    assert build.build(pair) == build.build(pair) == build.libraries(pair)
    assert len(built) == 2
    assert (build.libraries(pair) / "lib.so").exists()


def test_the_compiler_s_message_is_in_the_error():
    with pytest.raises(BuildError, match="nothing-of-this-name"):
        build._run(["g++", "nothing-of-this-name.cpp"])


def test_symbols_that_are_not_simulated_say_so():
    source = build._refusing({"aclrtLaunchKernel", "aclCreateTensorDesc"})
    assert "aclrtLaunchKernel of AscendCL is not simulated" in source
    assert "aclCreateTensorDesc of AscendCL" not in source
