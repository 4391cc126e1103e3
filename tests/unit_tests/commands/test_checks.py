"""Each trap that `ascend-patch doctor` knows, on a made-up machine."""

from pathlib import Path

import pytest

from ascend_patch.commands import checks
from ascend_patch.commands.machine import Machine


def summary(check, machine: Machine) -> dict[str, str]:
    findings = list(check(machine))
    for finding in findings:
        assert (finding.level == "ok") == (finding.next_step == ""), "a finding needs a next step"
    return {finding.check: finding.level for finding in findings}


def put(folder: Path, *files: str, text: str = "") -> Path:
    for file in files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def megatron(folder: Path, version: tuple[int, int, int], *parts: str) -> Path:
    put(folder, "megatron/core/__init__.py", *(f"megatron/{part}/__init__.py" for part in parts))
    major, minor, patch = version
    info = f'MAJOR = {major}\nMINOR = {minor}\nPATCH = {patch}\nPRE_RELEASE = ""\n'
    return put(folder, "megatron/core/package_info.py", text=info)


@pytest.mark.parametrize(("version", "level"), [((3, 11), "error"), ((3, 12), "ok"), ((3, 14), "ok")])
def test_python(version, level):
    assert summary(checks.python, Machine(python=version)) == {"Python": level}


def torch_build(folder: Path, cuda: str | None) -> Path:
    return put(folder, "torch/version.py", text=f"from typing import Optional\ncuda: Optional[str] = {cuda!r}\n")


@pytest.mark.parametrize(
    ("torch", "npu", "cuda", "level"),
    [
        ("2.9.1", "2.9.1", None, "ok"),
        ("2.9.0+cpu", "2.9.0.post2", None, "ok"),
        ("2.9.1", "2.9.0.post2", None, "warning"),
        ("2.9.1", "2.9.1", "12.8", "ok"),
        ("2.10.0", "2.9.1", None, "error"),
        ("2.13.0", "2.13.0", "13.0", "error"),
        ("2.13.0", "2.13.0", None, "ok"),
    ],
)
def test_torch_pairing(tmp_path, torch, npu, cuda, level):
    put(tmp_path, "lib/libhccl.so")
    machine = Machine(
        distributions={"torch": torch, "torch-npu": npu},
        path=(torch_build(tmp_path, cuda),),
        library_path=(tmp_path / "lib",),
    )
    assert summary(checks.torch, machine) == {"PyTorch": "ok", "torch_npu": level, "CANN": "ok"}


@pytest.mark.parametrize(("python", "level"), [((3, 12), "ok"), ((3, 13), "ok"), ((3, 14), "warning")])
def test_torch_npu_pairs_with_python(tmp_path, python, level):
    distributions = {"torch": "2.9.1", "torch-npu": "2.9.1"}
    machine = Machine(python=python, distributions=distributions, path=(torch_build(tmp_path, None),))
    assert summary(checks.torch, machine)["torch_npu"] == level


def test_a_mismatch_is_answered_with_the_pairs(tmp_path):
    machine = Machine(distributions={"torch": "2.9.0", "torch-npu": "2.7.1"}, path=(torch_build(tmp_path, None),))
    (finding,) = (finding for finding in checks.torch(machine) if finding.check == "torch_npu")
    assert finding.found == "2.7.1 beside PyTorch 2.9.0"
    assert "torch_npu 2.9.0.post6 with CANN 9.1.0" in finding.next_step


def test_torch_missing_and_torch_npu_without_cann(tmp_path):
    assert summary(checks.torch, Machine()) == {"PyTorch": "error"}
    alone = Machine(distributions={"torch": "2.9.1"}, path=(torch_build(tmp_path, "12.8"),))
    assert summary(checks.torch, alone) == {"PyTorch": "ok", "torch_npu": "ok"}
    assert "2.9.1 (CUDA 12.8)" in next(iter(checks.torch(alone))).found
    no_cann = Machine(distributions={"torch": "2.9.1", "torch-npu": "2.9.1"})
    assert summary(checks.torch, no_cann)["CANN"] == "error"


def test_cann_version(tmp_path):
    put(tmp_path, "lib/libhccl.so")
    put(tmp_path, "aarch64-linux/ascend_toolkit_install.info", text="package_name=x\nversion=8.3.RC1\n")
    distributions = {"torch": "2.9.1", "torch-npu": "2.9.1"}
    machine = Machine(distributions=distributions, cann=tmp_path, library_path=(tmp_path / "lib",))
    assert list(checks.torch(machine))[-1].found == f"8.3.RC1 at {tmp_path}"


@pytest.mark.parametrize(("npu", "cann", "level"), [("2.9.0.post6", "9.0.0", "warning"), ("2.9.0", "9.1.0", "ok")])
def test_cann_pairs_with_torch_npu(tmp_path, npu, cann, level):
    put(tmp_path, "lib/libhccl.so")
    put(tmp_path, "x86_64-linux/ascend_toolkit_install.info", text=f"version={cann}\n")
    distributions = {"torch": "2.9.0", "torch-npu": npu}
    machine = Machine(distributions=distributions, cann=tmp_path, library_path=(tmp_path / "lib",))
    assert summary(checks.torch, machine)["CANN"] == level


def test_no_megatron():
    assert summary(checks.megatron, Machine()) == {"Megatron-LM": "error"}


def test_one_megatron(tmp_path):
    machine = Machine(path=(tmp_path / "empty", megatron(tmp_path / "a", (0, 19, 2), "training")))
    assert summary(checks.megatron, machine) == {"Megatron-LM": "ok"}


def test_unsupported_megatron(tmp_path):
    machine = Machine(path=(megatron(tmp_path, (0, 12, 1), "training"),))
    assert summary(checks.megatron, machine) == {"Megatron-LM": "error"}


def test_megatron_without_its_training_part(tmp_path):
    machine = Machine(path=(megatron(tmp_path, (0, 16, 1)),))
    assert summary(checks.megatron, machine) == {"Megatron-LM": "ok", "megatron.training": "warning"}


def test_two_megatrons(tmp_path):
    both = tuple(megatron(tmp_path / name, (0, 19, 2), "training") for name in "ab")
    findings = list(checks.megatron(Machine(path=both)))
    assert [finding.check for finding in findings] == ["Megatron-LM", "two Megatrons"]
    assert str(both[0]) in findings[1].found and str(both[1]) in findings[1].found


def test_megatron_in_two_halves(tmp_path):
    path = (megatron(tmp_path / "a", (0, 16, 1)), put(tmp_path / "b", "megatron/training/__init__.py"))
    assert summary(checks.megatron, Machine(path=path)) == {"Megatron-LM": "ok", "megatron.training": "error"}


def test_apex(tmp_path):
    assert summary(checks.apex, Machine()) == {"apex": "ok"}
    fake = Machine(path=(put(tmp_path / "fake", "apex/__init__.py"),))
    assert summary(checks.apex, fake) == {"apex": "error"}
    real = Machine(path=(put(tmp_path / "real", "apex/__init__.py", "amp_C.py"),))
    assert summary(checks.apex, real) == {"apex": "ok"}
    ascend = Machine(path=(put(tmp_path / "ascend", "apex/__init__.py", "apex/optimizers/npu_fused_adam.py"),))
    assert summary(checks.apex, ascend) == {"apex": "ok"}


@pytest.mark.parametrize(
    ("distributions", "files", "variables", "found", "level"),
    [
        ({}, [], {}, "ascend_patch's FusedAdam: PyTorch's fused kernels", "ok"),
        ({"torch-npu": "2.9.1"}, [], {}, "ascend_patch's FusedAdam: npu_apply_adam_w", "ok"),
        (
            {"torch-npu": "2.9.1"},
            ["apex/__init__.py", "apex/optimizers/npu_fused_adam.py"],
            {},
            "ascend_patch's FusedAdam: npu_apply_adam_w",
            "ok",
        ),
        (
            {"torch-npu": "2.9.1"},
            [],
            {"ASCEND_PATCH_OPS": "adam=reference"},
            "ascend_patch's FusedAdam: plain PyTorch",
            "ok",
        ),
        ({}, ["apex/__init__.py", "amp_C.py"], {}, "Apex's FusedAdam", "ok"),
        ({"transformer-engine": "2.9"}, [], {}, "TransformerEngine's FusedAdam", "ok"),
        ({}, [], {"ASCEND_PATCH_DISABLE": "optimizer.adam"}, "torch.optim.AdamW; ", "warning"),
        ({}, ["apex/__init__.py"], {"ASCEND_PATCH_DISABLE": "optimizer.adam"}, "Apex's FusedAdam, which ", "warning"),
    ],
)
def test_optimizer(tmp_path, monkeypatch, distributions, files, variables, found, level):
    for name in ("ASCEND_PATCH_DEVICE", "ASCEND_PATCH_DISABLE", "ASCEND_PATCH_OPS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    machine = Machine(distributions=distributions, path=(put(tmp_path, *files),))
    assert summary(checks.optimizer, machine) == {"optimizer": level}
    (finding,) = checks.optimizer(machine)
    assert finding.found.startswith(found)


def test_a_folder_named_apex_is_no_package(tmp_path):
    (tmp_path / "apex").mkdir()
    assert summary(checks.apex, Machine(path=(tmp_path,))) == {"apex": "ok"}


def test_transformer_engine(tmp_path):
    assert summary(checks.transformer_engine, Machine()) == {"TransformerEngine": "ok"}
    real = Machine(distributions={"transformer-engine": "2.9.0", "transformer-engine-cu12": "2.9.0"})
    assert summary(checks.transformer_engine, real) == {"TransformerEngine": "warning"}
    fake = Machine(path=(put(tmp_path, "transformer_engine/__init__.py"),))
    assert summary(checks.transformer_engine, fake) == {"TransformerEngine": "error"}


def test_compiler():
    assert summary(checks.compiler, Machine(programs=frozenset({"g++", "make"}))) == {"compiler": "ok"}
    (finding,) = checks.compiler(Machine(programs=frozenset({"make"})))
    assert finding.level == "warning" and finding.found == "missing: g++"


def test_training_needs():
    (finding,) = checks.training_needs(Machine(distributions=dict.fromkeys(checks.TRAINING_NEEDS[1:], "1")))
    assert finding.level == "warning" and checks.TRAINING_NEEDS[0] in finding.next_step


def test_activation(monkeypatch):
    here = frozenset({"ascend_patch"})
    assert summary(checks.activation, Machine(backends=here)) == {"ascend_patch": "ok"}
    assert summary(checks.activation, Machine()) == {"ascend_patch": "warning"}
    assert summary(checks.activation, Machine(backends=here, autoload="0")) == {"ascend_patch": "warning"}
    monkeypatch.setenv("ASCEND_PATCH_DEVICES", "cpu")
    (finding,) = checks.activation(Machine(backends=here))
    assert finding.level == "error" and "ASCEND_PATCH_DEVICES" in finding.found


def test_this_machine_is_looked_at_without_importing():
    machine = Machine.here()
    assert "torch" in machine.distributions and machine.importable("packaging")
    assert not machine.importable("a_package_that_is_not_there")
    assert Path.cwd() in machine.path
