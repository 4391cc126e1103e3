"""The commands, on the real catalogue and the installed Megatron-LM."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ascend_patch.cli import main
from ascend_patch.commands import contract as contract_command
from ascend_patch.commands import megatron
from ascend_patch.commands.local import likely_device
from ascend_patch.compat import upstream
from ascend_patch.engine.contract import Contract, default_directory
from ascend_patch.engine.patch import Outcome
from ascend_patch.engine.report import write_json
from ascend_patch.features import PATCHES
from tests.upstream import location

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = upstream.locate()


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    status = main(arguments)
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def read(capsys, *arguments: str) -> tuple[int, dict]:
    status, out, _ = run(capsys, *arguments, "--json")
    return status, json.loads(out)


def folder_of(version: str) -> Path:
    """Where `make test` has put a release."""
    if version == INSTALLED.version:
        return INSTALLED.path
    return ROOT / ".cache" / "megatron" / version


@pytest.fixture
def drifted(tmp_path) -> Path:
    """The installed Megatron with one function changed under a replace, one under a wrap, and one removed."""
    for module in {patch.module for patch in PATCHES} | {"megatron.core", "megatron.core.package_info"}:
        for name in (module.replace(".", "/") + ".py", module.replace(".", "/") + "/__init__.py"):
            if (INSTALLED.path / name).is_file():
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(INSTALLED.path / name, tmp_path / name)
    for symbol in {one for patch in PATCHES for one in patch.consumers}:
        name = symbol.partition(":")[0].replace(".", "/") + ".py"
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if (INSTALLED.path / name).is_file():
            shutil.copy(INSTALLED.path / name, tmp_path / name)
    return tmp_path


def edit(folder: Path, module: str, old: str, new: str) -> None:
    path = folder / (module.replace(".", "/") + ".py")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# status


def test_status(capsys):
    status, data = read(capsys, "status", "--device", "cpu")
    assert status == 0
    assert (data["device"], data["megatron"]) == ("cpu", INSTALLED.version)
    assert [row["target"] for row in data["patches"]] == [patch.target for patch in PATCHES]
    for row, patch in zip(data["patches"], PATCHES, strict=True):
        if not patch.supports(INSTALLED.version):
            assert row["state"] == "skipped" and row["detail"].startswith("not for Megatron-LM")
    assert "applies" in {row["state"] for row in data["patches"]}


def test_status_as_a_table(capsys):
    status, out, _ = run(capsys, "status", "--device", "cpu")
    assert status == 0
    assert out.startswith("ascend_patch ") and f"Megatron-LM {INSTALLED.version}" in out.splitlines()[0]
    for patch in PATCHES:
        assert any(line.startswith(patch.id) and patch.target in line for line in out.splitlines())


def test_status_says_which_engine_generates(capsys, tmp_path):
    wheel = location("0.16.1")
    checkout = tmp_path / "megatron"
    (checkout / "training").mkdir(parents=True)
    (checkout / "training" / "__init__.py").touch()
    (checkout / "core").symlink_to(wheel / "megatron" / "core")
    needs = "Generation and evaluation need Megatron-LM 0.17.1 or newer, or a checkout."
    static = "Generation and evaluation take the static inference engine: one request at a time, no beam search."
    for place, engine, line in (
        (str(wheel), None, needs),
        (str(tmp_path), "static", static),
        ("installed", "dynamic", None),
    ):
        assert read(capsys, "status", "--megatron", place)[1]["generation"] == engine
        lines = run(capsys, "status", "--megatron", place)[1].splitlines()
        assert [found for found in lines if found.startswith("Generation and")] == ([line] if line else [])


def test_status_honours_the_off_switch(capsys, monkeypatch):
    monkeypatch.setenv("ASCEND_PATCH_DISABLE", PATCHES[0].id)
    _, data = read(capsys, "status")
    found = {row["detail"] for row in data["patches"] if row["id"] == PATCHES[0].id}
    assert found == {"disabled by id"}


def test_status_with_what_a_run_recorded(capsys, tmp_path):
    outcomes = [Outcome(patch.id, patch.target, "applied") for patch in PATCHES[:-1]]
    write_json(tmp_path / "run.json", outcomes, operators={}, version="0", device="cpu", upstream="0.19.2")
    status, data = read(capsys, "status", "--report", str(tmp_path / "run.json"))
    assert status == 0
    assert data["patches"][0]["run"][0]["status"] == "applied" and data["patches"][-1]["run"] == []
    failed = [Outcome(PATCHES[0].id, PATCHES[0].target, "failed", "the reason")]
    write_json(tmp_path / "run.json", failed, operators={}, version="0", device="cpu", upstream="0.19.2")
    status, out, _ = run(capsys, "status", "--report", str(tmp_path / "run.json"))
    assert status == 1 and "the reason" in out and "not recorded" in out


def test_status_shows_which_variant_of_each_operator_ran(capsys, tmp_path):
    operators = {
        "permute": {
            "variant": "npu",
            "calls": {"permute": {"npu": 12345}, "unpermute": {"npu": 9, "torch": 1}},
            "unsupported": {"an odd head size": 1},
        },
        "adam": {"variant": "torch", "calls": {}, "unsupported": {}},
    }
    write_json(tmp_path / "run.json", [], operators=operators, version="0", device="npu", upstream="0.19.2")
    _, data = read(capsys, "status", "--report", str(tmp_path / "run.json"))
    assert data["operators"] == operators
    _, out, _ = run(capsys, "status", "--report", str(tmp_path / "run.json"))
    permute, adam = (line for line in out.splitlines() if line.startswith(("permute ", "adam ")))
    assert "permute 12,345 npu; unpermute 9 npu, 1 torch" in permute and "1 unsupported: an odd head size" in permute
    assert adam.split() == ["adam", "torch", "none"]


@pytest.mark.parametrize("operators", [{"adam": {}}, [], {"adam": {"variant": "torch", "calls": 3}}])
def test_status_of_a_report_with_unreadable_operators(capsys, tmp_path, operators):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"schema": 2, "patches": [], "operators": operators}))
    status, _, err = run(capsys, "status", "--report", str(path))
    assert status == 2 and f"{path} is not a report of ascend_patch" in err


def test_a_reason_to_skip_is_told_once(capsys, tmp_path):
    """Here and in the run it is the same reason."""
    skipped = next(patch for patch in PATCHES if not patch.supports(INSTALLED.version))
    reason = f"not for Megatron-LM {INSTALLED.version} ({skipped.upstream})"
    outcomes = [Outcome(skipped.id, skipped.target, "skipped", reason)]
    write_json(tmp_path / "run.json", outcomes, operators={}, version="0", device="cpu", upstream=INSTALLED.version)
    _, out, _ = run(capsys, "status", "--report", str(tmp_path / "run.json"))
    (line,) = (line for line in out.splitlines() if line.startswith(f"{skipped.id} ") and "not recorded" not in line)
    assert line.count(reason) == 1


def test_status_on_a_drifted_megatron(capsys, drifted):
    edit(
        drifted,
        "megatron.core.tensor_parallel.cross_entropy",
        "def vocab_parallel_cross_entropy(",
        "def gone(",
    )
    status, data = read(capsys, "status", "--megatron", str(drifted))
    assert status == 1
    fails = [row for row in data["patches"] if row["state"] == "fails"]
    assert {row["target"].partition(":")[2] for row in fails} == {"vocab_parallel_cross_entropy"}
    assert "does not exist" in fails[0]["detail"]


# explain


@pytest.mark.parametrize("patch_id", sorted({patch.id for patch in PATCHES}))
def test_explain(capsys, patch_id):
    status, data = read(capsys, "explain", patch_id)
    rows = [patch for patch in PATCHES if patch.id == patch_id]
    assert status == 0
    assert [row["reason"] for row in data["patches"]] == [patch.reason for patch in rows]
    assert all(row["recorded_for"] for row in data["patches"]), "a patch that no recorded release vouches for"
    _, out, _ = run(capsys, "explain", patch_id)
    assert rows[0].reason in out and f"ASCEND_PATCH_DISABLE={patch_id}" in out


@pytest.mark.parametrize(
    ("patch_id", "beginning"),
    [
        ("data.compile_helpers", "always"),
        ("moe.router_topk", "without transformer engine. "),
        ("arguments.cpu", "on cpu. "),
    ],
)
def test_explain_says_where_a_patch_applies(capsys, patch_id, beginning):
    _, data = read(capsys, "explain", patch_id)
    assert all(row["applies"].startswith(beginning) for row in data["patches"])
    _, out, _ = run(capsys, "explain", patch_id)
    assert f"\n  applies        {beginning}" in out


def test_explain_unknown_id(capsys):
    status, _, err = run(capsys, "explain", PATCHES[0].id[:-1])
    assert status == 2 and f"Did you mean {PATCHES[0].id}" in err


# drift


def test_drift_of_the_installed_megatron(capsys):
    status, data = read(capsys, "drift")
    assert status == 0
    assert [release["version"] for release in data["releases"]] == [INSTALLED.version]
    assert not any(one["stops_a_run"] for row in data["patches"] for one in row["releases"])


def test_drift_stops_and_says_what_to_do(capsys, drifted):
    edit(
        drifted,
        "megatron.core.tensor_parallel.cross_entropy",
        "def vocab_parallel_cross_entropy(",
        "def gone(",
    )
    status, out, _ = run(capsys, "drift", "--megatron", str(drifted))
    assert status == 1
    (line,) = (line for line in out.splitlines() if "DRIFT" in line)
    patch_id = line.split()[0]
    assert "vocab_parallel_cross_entropy does not exist" in out and f"ASCEND_PATCH_DISABLE={patch_id}" in out


def test_changed_body_under_a_wrap_is_told_but_does_not_stop(capsys, drifted):
    edit(drifted, "megatron.core.datasets.utils", "def compile_helpers():", "def compile_helpers():\n    0\n")
    status, out, _ = run(capsys, "drift", "--megatron", str(drifted))
    assert status == 0
    assert "compile_helpers has another body" in out


def test_wheel_and_folder_say_the_same(capsys, drifted, tmp_path_factory):
    wheel = tmp_path_factory.mktemp("wheel") / f"megatron_core-{INSTALLED.version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in drifted.rglob("*.py"):
            archive.write(path, path.relative_to(drifted))
    status, data = read(capsys, "drift", "--megatron", str(wheel), str(drifted))
    assert status == 0
    assert all(row["releases"][0] == row["releases"][1] for row in data["patches"])


def test_drift_as_a_document(capsys, tmp_path):
    assert run(capsys, "drift", "--markdown", str(tmp_path / "docs" / "drift.md"))[0] == 0
    text = (tmp_path / "docs" / "drift.md").read_text()
    assert text.count("\n| `") == len(PATCHES) and f"| {INSTALLED.version} |" in text


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no/such/place", "neither a folder, nor a wheel file, nor a version"),
        ("{tmp}", "holds no Megatron"),
        ("{tmp}/torch-2.9.1-py3-none-any.whl", "is a wheel of torch, not of megatron-core"),
        ("{tmp}/renamed.whl", "does not have a wheel's name"),
    ],
)
def test_what_is_no_megatron(capsys, tmp_path, value, message):
    for name in ("torch-2.9.1-py3-none-any.whl", "renamed.whl"):
        (tmp_path / name).touch()
    status, _, err = run(capsys, "drift", "--megatron", value.format(tmp=tmp_path))
    assert status == 2 and message in err


def test_a_version_is_downloaded(capsys, monkeypatch, drifted):
    def pip(command, **_):
        assert command[-1] == "megatron-core==0.19.0" and "--no-deps" in command
        if "3.12" in command:
            return subprocess.CompletedProcess(command, 1, "", "no wheel for this Python")
        name = "megatron_core-0.19.0-py3-none-any.whl"
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / name, "w") as archive:
            for path in drifted.rglob("*.py"):
                archive.write(path, path.relative_to(drifted))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(megatron.subprocess, "run", pip)
    status, data = read(capsys, "drift", "--megatron", "0.19.0")
    assert status == 0 and data["releases"][0]["version"] == "0.19.0"


def test_a_failed_download_says_why(capsys, monkeypatch):
    done = subprocess.CompletedProcess([], 1, "", "first\nERROR: no such release")
    monkeypatch.setattr(megatron.subprocess, "run", lambda *_, **__: done)
    status, _, err = run(capsys, "drift", "--megatron", "0.99.0")
    assert status == 2 and "ERROR: no such release" in err


# contract


@pytest.mark.parametrize("version", Contract.load().versions)
def test_recorded_release_is_not_stale(capsys, version):
    folder = folder_of(version)
    assert folder.is_dir(), f"Megatron-LM {version} is not at {folder}; run `make megatron`."
    status, out, _ = run(capsys, "contract", "--check", "--megatron", str(folder))
    assert status == 0, out


def test_stale_files_are_named(capsys, tmp_path, drifted):
    shutil.copytree(default_directory(), tmp_path / "patches")
    place = ["--directory", str(tmp_path / "patches"), "--megatron", str(drifted)]
    assert run(capsys, "contract", "--check", *place)[0] == 0
    edit(drifted, "megatron.core.datasets.utils", "def compile_helpers():", "def compile_helpers():\n    0\n")
    (tmp_path / "patches" / "CATALOGUE.md").write_text("edited by hand")
    status, out, _ = run(capsys, "contract", "--check", *place)
    assert status == 1 and f"{INSTALLED.version}.toml is stale" in out and "CATALOGUE.md is stale" in out
    assert run(capsys, "contract", "--write", *place)[0] == 0
    assert run(capsys, "contract", "--check", *place)[0] == 0


def test_a_new_patch_makes_every_release_stale(tmp_path):
    more = [*PATCHES, contract_command.Patch("a.new", "megatron.core:new", "a:b", "wrap", ">=0.16", "x", "y")]
    stale = contract_command.stale_files(more, [], default_directory())
    assert len(stale) == len(Contract.load().versions) + 1


# doctor and the rest


def test_doctor(capsys):
    status, data = read(capsys, "doctor")
    by_level = {finding["level"] for finding in data["findings"]}
    assert status == int("error" in by_level)
    assert {"Python", "PyTorch", "Megatron-LM", "apex", "compiler"} <= {f["check"] for f in data["findings"]}


def test_doctor_prints_the_next_step(capsys, monkeypatch):
    monkeypatch.setenv("ASCEND_PATCH_NONSENSE", "1")
    status, out, _ = run(capsys, "doctor")
    assert status == 1 and "ASCEND_PATCH_NONSENSE" in out and "Correct it" in out


PLAN = ["plan", "--model", "7b", "--devices", "8"]


@pytest.mark.parametrize(
    "command", [["status"], ["explain", PATCHES[0].id], ["drift"], ["operators"], ["doctor"], PLAN]
)
def test_commands_import_neither_torch_nor_megatron(command):
    code = (
        "import sys; from ascend_patch.cli import main; status = main(sys.argv[1:]);"
        "heavy = {'torch', 'torch_npu', 'megatron.core', 'transformers', 'numpy'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_likely_device(tmp_path):
    assert likely_device(tmp_path) == "cpu"
    (tmp_path / "nvidia0").touch()
    assert likely_device(tmp_path) == "cuda"
    (tmp_path / "davinci0").touch()
    assert likely_device(tmp_path) == "npu"
