"""The manifest of a run."""

import json
from pathlib import Path

import pytest

from ascend_patch import manifest


def test_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "_sources", {})
    monkeypatch.setenv("HCCL_DETERMINISTIC", "true")
    monkeypatch.setenv("SECRET_TOKEN", "hidden")
    manifest.contribute("operators", lambda: {"attention": "npu"})
    first = manifest.write(tmp_path, {"seed": 5, "params_dtype": object, "save": tmp_path})
    second = manifest.write(tmp_path, {"seed": 6})
    assert sorted((tmp_path / "manifests").iterdir()) == [first, second]  # by time, and nothing unfinished
    said = json.loads(first.read_text())
    assert said["arguments"] == {"params_dtype": "<class 'object'>", "save": str(tmp_path), "seed": 5}
    assert said["operators"] == {"attention": "npu"}
    assert said["environment"]["HCCL_DETERMINISTIC"] == "true"
    assert "SECRET_TOKEN" not in said["environment"]
    assert {"python", "torch", "megatron-core", "ascend-patch"} <= set(said["versions"])
