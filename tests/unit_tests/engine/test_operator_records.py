"""Recorded schemas: written, read, found, refused."""

import pytest

from ascend_patch.engine.errors import ContractError
from ascend_patch.engine.operator_records import OperatorRelease, read, recorded
from ascend_patch.engine.schema import Schema

RELEASE = OperatorRelease(
    "1.0.post2",
    "==1.0+cpu",
    {name: Schema.parse(f'(Tensor x, str how="{name}") -> Tensor') for name in ("npu_b.out", "npu_a", "npu_b", "c")},
)


def test_only_what_is_used_is_kept():
    kept = RELEASE.only({"npu_b", "npu_gone"})
    assert list(kept.schemas) == ["npu_b", "npu_b.out"]
    assert kept.absent == ("npu_gone",) and kept.operators == {"npu_b", "npu_gone"}


def test_what_was_written_is_read_back():
    kept = RELEASE.only({"npu_a", "npu_b", "npu_gone"})
    assert OperatorRelease.from_toml(kept.to_toml()) == kept


def test_directory(tmp_path):
    for version in ("2.10.0", "2.9.0.post10", "2.9.0.post2", "2.9.0"):
        release = OperatorRelease(version, "", RELEASE.schemas)
        (tmp_path / f"{version}.toml").write_text(release.to_toml())
    assert list(recorded(tmp_path)) == ["2.9.0", "2.9.0.post2", "2.9.0.post10", "2.10.0"]
    assert read("2.9.0.post2", tmp_path).schemas == RELEASE.schemas


@pytest.mark.parametrize(
    "text", ["no toml [", "schema = 9", "schema = 1", 'schema = 1\ntorch_npu="1"\ntorch=""\nabsent=[]\noperators="x"']
)
def test_unreadable_file_is_named(tmp_path, text):
    (tmp_path / "1.0.toml").write_text(text)
    with pytest.raises(ContractError, match=r"1\.0\.toml cannot be used.*operators --wheel 1\.0 --write"):
        read("1.0", tmp_path)


def test_a_release_that_is_not_recorded(tmp_path):
    with pytest.raises(ContractError, match=r"9\.9\.toml cannot be used"):
        read("9.9", tmp_path)
