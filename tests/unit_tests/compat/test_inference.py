"""What releases of upstream's inference engine can do."""

from pathlib import Path

import pytest

from ascend_patch.compat import inference
from ascend_patch.compat.upstream import Upstream


@pytest.mark.parametrize(
    ("release", "expected"), [("0.17.1", False), ("0.18.2", False), ("0.19.0", True), ("0.19.2", True)]
)
def test_prefixes_are_kept_where_that_is_right(
    release: str, expected: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(inference, "locate", lambda: Upstream(release, tmp_path))
    assert inference.keeps_prefixes() is expected
