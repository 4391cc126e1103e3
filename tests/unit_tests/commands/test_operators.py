"""`ascend-patch operators`: on the real records, and on wheels made up here."""

import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from ascend_patch.cli import main
from ascend_patch.commands import operators, operators_table, torch_npu
from ascend_patch.compat.torch_npu import REFERENCE
from ascend_patch.engine.operator_records import OperatorRelease, read, recorded
from ascend_patch.engine.schema import Schema

ROOT = Path(__file__).resolve().parents[3]
FUNCTIONS = """\
backend: NPU
custom:
- func: npu_x(Tensor self, Tensor gamma, float epsilon=1e-06) -> (Tensor, Tensor)
  impl_ns: acl_op, op_api
- exposed: true
  func: npu_long(Tensor self, *, str layout="BSH",
    int[]? ends=None) -> Tensor
- func: 'npu_quoted(Tensor self, str mode=''half'') -> Tensor'
- func: npu_step.out(Scalar lr, Tensor grad, *, Tensor(a!) var, Tensor(b!) m) -> (Tensor(a!), Tensor(b!))
- func: npu_one.out(Tensor self, *, Tensor(a!) result) -> Tensor(a!)
supported:
- func: clone
  op_api: true
- contiguous
"""


def wheel(folder: Path, version: str = "2.9.1", functions: str = FUNCTIONS) -> Path:
    path = folder / f"torch_npu-{version}-cp311-cp311-manylinux_2_28_x86_64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("torch_npu/csrc/aten/npu_native_functions_by_codegen.yaml", functions)
        archive.writestr(
            f"torch_npu-{version}.dist-info/METADATA",
            f"Metadata-Version: 2.1\nName: torch_npu\nVersion: {version}\nRequires-Dist: torch ==2.9.1+cpu\n",
        )
    return path


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Let the package consist of one file, `ops/x/npu.py`."""

    def write(source: str) -> Path:
        file = tmp_path / "package" / "ops" / "x" / "npu.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
        monkeypatch.setattr(operators, "PACKAGE", tmp_path / "package")
        return tmp_path

    return write


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    status = main(["operators", *map(str, arguments)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


# the real records


def test_records_are_not_stale(capsys):
    status, out, _ = run(capsys, "--check")
    assert status == 0, out


def test_records_are_of_every_supported_pytorch():
    assert {"2.7.1", "2.8.0", "2.9.0", "2.9.1", "2.10.0", "2.11.0", "2.12.0", "2.13.0", "2.14.0"} <= set(recorded())


def test_every_call_fits_the_reference(capsys):
    status, out, _ = run(capsys)
    assert status == 0, out


def test_document_is_current():
    used = operators_table.uses(operators.PACKAGE)
    text = operators_table.document(used, [read(version) for version in recorded()], read(REFERENCE))
    assert (ROOT / "docs" / "torch_npu.md").read_text(encoding="utf-8") == text, "write it with --markdown"


def test_operators_are_called_from_the_operators_packages_only():
    files = {file for use in operators_table.uses(operators.PACKAGE) for file, _ in use.places}
    assert files and all(Path(file).parts[0] == "ops" for file in files), files


# wheels


def test_a_wheel_is_read_as_torch_shows_it(tmp_path):
    release = torch_npu.resolve(str(wheel(tmp_path)))
    assert (release.version, release.torch) == ("2.9.1", "==2.9.1+cpu")
    assert {name: str(schema) for name, schema in release.schemas.items()} == {
        "npu_x": "(Tensor input, Tensor gamma, float epsilon=1e-06) -> (Tensor, Tensor)",
        "npu_long": '(Tensor input, *, str layout="BSH", int[]? ends=None) -> Tensor',
        "npu_quoted": '(Tensor input, str mode="half") -> Tensor',
        "npu_step.out": "(Scalar lr, Tensor grad, *, Tensor[] out) -> (Tensor, Tensor)",
        "npu_one.out": "(Tensor input, *, Tensor(a!) result) -> Tensor(a!)",
    }


@pytest.mark.npu
def test_records_are_what_torch_npu_registers():
    """The list in the wheel is another text than the one that torch_npu registers: they must say the same."""
    import torch
    import torch_npu as installed

    version = installed.__version__.partition("+")[0]
    for name, schema in read(version).schemas.items():
        operator, _, overload = name.partition(".")
        found = getattr(getattr(torch.ops.npu, operator), overload or "default")._schema
        assert Schema.parse(str(found)) == schema


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("gamma, float epsilon=1e-06", "gamma, float epsilon=1e-06, int more=0", "ok"),
        ("float epsilon=1e-06", "float eps=1e-06", "renamed"),
        ("npu_x(", "npu_x_v2(", "missing"),
        ("Tensor self, Tensor gamma", "Tensor self, *, Tensor? gamma=None", "positional"),
        (", float epsilon=1e-06", "", "argument"),
        ("(Tensor, Tensor)\n  impl", "Tensor\n  impl", "returns"),
        ("float epsilon=1e-06", "float epsilon=1e-06, int must=1", "ok"),
    ],
)
def test_a_release_that_differs_is_flagged(capsys, tmp_path, package, old, new, word):
    package("import torch_npu\ny, r = torch_npu.npu_x(a, b, epsilon=e)\n")
    assert old in FUNCTIONS
    records = tmp_path / "records"
    before = [wheel(tmp_path), wheel(tmp_path, "2.10.0", FUNCTIONS.replace(old, new))]
    status, out, _ = run(capsys, "--directory", records, "--wheel", *before, "--write")
    assert status == 0
    (row,) = (line.split() for line in out.splitlines() if line.startswith("npu_x  "))
    assert row == ["npu_x", "x", "ok", word]
    assert ("(2.10.0)" in out) == (word != "ok")


@pytest.mark.parametrize(
    ("call", "word"),
    [
        ("torch_npu.npu_x(a, b, c, d)", "positional"),
        ("torch_npu.npu_x(a, b, eps=c)", "argument"),
        ("torch_npu.npu_gone(a)", "missing"),
        ("torch_npu.npu_x(a)", "required"),
        ("torch_npu.npu_x(*a)", "unread"),
        ("x, y, z = torch_npu.npu_x(a, b)", "returns"),
    ],
)
def test_a_wrong_call_is_an_error(capsys, tmp_path, package, call, word):
    package(f"import torch_npu\n{call}\n")
    arguments = ["--directory", tmp_path / "records", "--wheel", wheel(tmp_path), "--write"]
    status, out, _ = run(capsys, *arguments)
    assert status == 1 and word in out.splitlines()[2].split()


def test_posts_that_differ_are_told_apart(capsys, tmp_path, package):
    package("import torch_npu\ntorch_npu.npu_x(a, b)\n")
    without = FUNCTIONS.replace("npu_x(", "npu_old(")
    versions = {"2.9.0": without, "2.9.0.post2": without, "2.9.0.post10": FUNCTIONS, "2.9.1": FUNCTIONS}
    wheels = [wheel(tmp_path, version, text) for version, text in versions.items()]
    status, out, _ = run(capsys, "--directory", tmp_path / "records", "--wheel", *wheels, "--write")
    assert status == 0
    assert "missing, ok from post10  ok" in out and "(2.9.0, 2.9.0.post2)" in out


def test_stale_records_are_named(capsys, tmp_path, package):
    package("import torch_npu\ntorch_npu.npu_x(a, b)\n")
    place = ["--directory", tmp_path / "records", "--wheel", wheel(tmp_path)]
    assert run(capsys, *place, "--check")[:2] == (1, "2.9.1.toml does not exist.\n" + ADVICE)
    assert run(capsys, *place, "--write")[0] == 0
    assert run(capsys, *place, "--check")[0] == 0
    wheel(tmp_path, functions=FUNCTIONS.replace("gamma", "weight"))
    status, out, _ = run(capsys, *place, "--check")
    assert status == 1 and "2.9.1.toml is stale: the wheel has other schemas" in out
    package("import torch_npu\ntorch_npu.npu_long(a)\n")
    status, out, _ = run(capsys, *place[:2], "--check")
    assert status == 1 and "npu_long, npu_x" in out


ADVICE = "Generate them anew with `ascend-patch operators --wheel RELEASE… --write`, then review.\n"


def test_json(capsys):
    status, out, _ = run(capsys, "--json")
    data = json.loads(out)
    assert status == 0 and data["reference"] == REFERENCE
    assert [release["version"] for release in data["releases"]] == list(recorded())
    for row in data["operators"]:
        assert row["calls"] and row["releases"].keys() == set(recorded()) and row["releases"][REFERENCE] == []


def test_write_needs_wheels(capsys):
    status, _, err = run(capsys, "--write")
    assert status == 2 and "--write needs --wheel" in err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/place", "neither a wheel file nor a version"),
        ("torch-2.9.1-py3-none-any.whl", "is a wheel of torch, not of torch_npu"),
        ("renamed.whl", "does not have a wheel's name"),
        ("torch_npu-2.9.1-py3-none-any.whl", "is no complete wheel of torch_npu"),
    ],
)
def test_what_is_no_wheel_of_torch_npu(capsys, tmp_path, name, message):
    if name.endswith(".whl"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("empty", "")
    status, _, err = run(capsys, "--wheel", tmp_path / name)
    assert status == 2 and message in err


def test_a_version_is_downloaded(capsys, monkeypatch, tmp_path, package):
    package("import torch_npu\ntorch_npu.npu_x(a, b)\n")

    def pip(command, **_):
        assert command[-1] == "torch_npu==2.9.1" and "--no-deps" in command
        wheel(Path(command[command.index("--dest") + 1]))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(torch_npu.subprocess, "run", pip)
    status, out, _ = run(capsys, "--directory", tmp_path, "--wheel", "2.9.1", "--write")
    assert status == 0 and isinstance(read("2.9.1", tmp_path), OperatorRelease)


def test_a_failed_download_says_why(capsys, monkeypatch):
    done = subprocess.CompletedProcess([], 1, "", "first\nERROR: no such release")
    monkeypatch.setattr(torch_npu.subprocess, "run", lambda *_, **__: done)
    status, _, err = run(capsys, "--wheel", "2.99.0")
    assert status == 2 and "ERROR: no such release" in err
