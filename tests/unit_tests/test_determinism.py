"""The environment of deterministic computing, and the call that seeds all, in processes of their own."""

import json
import subprocess
import sys

import pytest

from ascend_patch import determinism
from ascend_patch.engine.errors import AscendPatchError

COMPLETE = {setting.variable: setting.accepted[0] for setting in determinism.SETTINGS} | {"PYTHONHASHSEED": "0"}


def test_what_is_missing_is_set() -> None:
    environ = {"PATH": "/bin", "HCCL_DETERMINISTIC": "strict", "PYTHONHASHSEED": "7"}
    assert set(determinism.prepare(environ)) == set(COMPLETE) - {"HCCL_DETERMINISTIC", "PYTHONHASHSEED"}
    assert environ == {**COMPLETE, "PATH": "/bin", "HCCL_DETERMINISTIC": "strict", "PYTHONHASHSEED": "7"}
    assert determinism.prepare(environ) == []


@pytest.mark.parametrize("setting", determinism.SETTINGS, ids=lambda setting: setting.variable)
def test_every_accepted_value_is_left_alone(setting: determinism.Setting) -> None:
    for value in setting.accepted:
        environ = {**COMPLETE, setting.variable: value}
        assert determinism.prepare(environ) == []
        assert environ[setting.variable] == value


def test_all_conflicts_are_named_and_nothing_is_set() -> None:
    environ = {"HCCL_DETERMINISTIC": "false", "NCCL_ALGO": "Ring,Tree", "PYTHONHASHSEED": "random"}
    before = dict(environ)
    with pytest.raises(AscendPatchError) as raised:
        determinism.prepare(environ)
    for part in ("HCCL_DETERMINISTIC='false'", "NCCL_ALGO='Ring,Tree'", "PYTHONHASHSEED='random'", "Unset these"):
        assert part in str(raised.value)
    assert environ == before


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": "", "PYTHONWARNINGS": "ignore", **variables}
    return subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=120)


SEEDED = """
import json, random, numpy, torch
from ascend_patch.determinism import seed_all
seed_all({seed}, mode={mode})
numbers = [random.random(), numpy.random.rand(), torch.rand(()).item()]
print(json.dumps([*numbers, torch.are_deterministic_algorithms_enabled()]))
"""


def seeded(seed: int, mode: bool, **variables: str) -> list:
    result = run(SEEDED.format(seed=seed, mode=mode), **variables)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_seeds() -> None:
    *first, deterministic = seeded(5, True)
    assert deterministic
    assert seeded(5, False) == [*first, False]
    assert all(one != other for one, other in zip(seeded(6, False)[:3], first, strict=True))


@pytest.mark.parametrize(
    ("call", "message"), [("seed_all(-1)", "seed_all(seed=-1)"), ("seed_all(1)", "NCCL_ALGO='Tree'")]
)
def test_errors(call: str, message: str) -> None:
    result = run(f"from ascend_patch.determinism import seed_all; {call}", NCCL_ALGO="Tree")
    assert result.returncode != 0
    assert message in result.stderr


LATE = """
import os, torch.distributed as dist
from ascend_patch.determinism import seed_all
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
try:
    seed_all()
finally:
    print("HCCL_DETERMINISTIC" in os.environ)
"""


def test_after_the_process_groups_it_is_too_late() -> None:
    result = run(LATE)
    assert result.returncode != 0
    assert "after the process groups were made, and HCCL_DETERMINISTIC" in result.stderr
    assert result.stdout.splitlines()[-1] == "False"
    assert run(LATE, **COMPLETE).returncode == 0


def test_the_variable_prepares_processes_that_are_started_later() -> None:
    code = "import os, torch; print(os.environ['HCCL_DETERMINISTIC'], os.environ['PYTHONHASHSEED'])"
    assert run(code, ASCEND_PATCH="1", ASCEND_PATCH_DETERMINISTIC="1").stdout == "true 0\n"
    refused = run(code, ASCEND_PATCH="1", ASCEND_PATCH_DETERMINISTIC="1", HCCL_DETERMINISTIC="false")
    assert refused.returncode != 0
    assert "HCCL_DETERMINISTIC='false' (HCCL" in refused.stderr
