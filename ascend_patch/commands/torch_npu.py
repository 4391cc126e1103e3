"""A release of torch_npu to look at without importing it: a wheel, or a version that is downloaded."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import tempfile
import zipfile
from email.parser import Parser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.engine.operator_records import OperatorRelease
from ascend_patch.engine.schema import Argument, Schema

# The file that the wheel carries for those who build operators against it; it lists every npu operator.
_FUNCTIONS = "torch_npu/csrc/aten/npu_native_functions_by_codegen.yaml"
_FUNCTION = re.compile(r"^(?:- | {2})func: (\S.*(?:\n {4,}\S.*)*)$", re.MULTILINE)
# Schemas are the same for every Python and processor, so one wheel stands for the release.
_WHEEL = ("--python-version", "3.11", "--platform", "manylinux_2_28_x86_64")


def resolve(value: str) -> OperatorRelease:
    """Every npu operator of the release that `value` means: a wheel file, or a version to download.

    Raises:
        AscendPatchError: it is neither, holds no operators, or cannot be downloaded.
    """
    path = Path(value)
    if path.suffix == ".whl" and path.is_file():
        return _from_wheel(path)
    try:
        version = Version(value)
    except InvalidVersion:
        raise AscendPatchError(
            f"--wheel {value} is neither a wheel file nor a version. Give a torch_npu-*.whl, or a release such as "
            "2.9.1."
        ) from None
    return _download(version)


def _from_wheel(path: Path) -> OperatorRelease:
    try:
        name, version, _, _ = parse_wheel_filename(path.name)
    except (InvalidWheelFilename, InvalidVersion) as error:
        raise AscendPatchError(f"{path} does not have a wheel's name: {error}. Give it its original name.") from error
    if name != "torch-npu":
        raise AscendPatchError(f"{path} is a wheel of {name}, not of torch_npu.")
    try:
        with zipfile.ZipFile(path) as archive:
            text = archive.read(_FUNCTIONS).decode()
            metadata = next(one for one in archive.namelist() if one.endswith(".dist-info/METADATA"))
            required = Parser().parsestr(archive.read(metadata).decode()).get_all("Requires-Dist", [])
    except (KeyError, StopIteration, zipfile.BadZipFile) as error:
        raise AscendPatchError(f"{path} is no complete wheel of torch_npu ({error}). Download it again.") from error
    torch = next((str(one.specifier) for one in map(Requirement, required) if one.name == "torch"), "")
    return OperatorRelease(str(version), torch, schemas(text))


def schemas(text: str) -> dict[str, Schema]:
    """Full name -> schema of every operator in the text of torch_npu's list of functions, as torch shows them."""
    found = {}
    for written in _FUNCTION.findall(text):
        line = re.sub(r"\s*\n\s+", " ", written)
        if line[0] in "'\"":
            line = line[1:-1].replace("''", "'")
        name, parenthesis, _ = line.partition("(")
        if parenthesis:  # the others are operators of torch, listed by name alone
            found[name] = _as_registered(name, Schema.parse(line))
    return found


def _as_registered(name: str, schema: Schema) -> Schema:
    """The schema that torch_npu's code generator registers with torch: `self` is `input`, and several results of an
    `out` overload are one list."""
    arguments = [dataclasses.replace(one, name="input") if one.name == "self" else one for one in schema.arguments]
    results = [one for one in arguments if one.keyword_only and "!" in one.type]
    if not name.endswith(".out") or len(results) < 2:
        return Schema(tuple(arguments), schema.returns)
    kept = [one for one in arguments if one not in results]
    returns = tuple(re.sub(r"\(.*\)", "", one) for one in schema.returns)
    return Schema((*kept, Argument("out", "Tensor[]", keyword_only=True)), returns)


def _download(version: Version) -> OperatorRelease:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += [*_WHEEL, "--dest", folder, f"torch_npu=={version}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode == 0 and wheels:
            return _from_wheel(wheels[0])
    reason = (done.stderr.strip() or "pip gave no reason").splitlines()[-1]
    raise AscendPatchError(
        f"torch_npu {version} could not be downloaded: {reason} Download the wheel elsewhere and name its file, or "
        "give a version that `pip index versions torch_npu` lists."
    )
