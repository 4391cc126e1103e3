"""A wheel that cannot generate says so, before anything of it is imported."""

import subprocess
import sys

import pytest

from tests.upstream import environment


@pytest.mark.parametrize("module", ["ascend_patch.generation.options", "ascend_patch.evaluation.workers"])
def test_a_wheel_that_cannot_generate(module: str) -> None:
    job = [sys.executable, "-c", f"import {module}"]
    found = subprocess.run(job, env=environment("0.16.1"), capture_output=True, text=True, timeout=120)
    assert found.returncode != 0
    assert "Megatron-LM 0.16.1 at " in found.stderr
    assert "cannot generate or evaluate" in found.stderr
    assert "it has no megatron.training" in found.stderr
