"""Shapes of upstream's MoE interfaces by release."""

from pathlib import Path

import pytest

from ascend_patch.compat import moe
from ascend_patch.compat.upstream import Upstream


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("0.16.1", ("t", "p", "i")),
        ("0.17.0", ("t", "p", "i", None, "n")),
        ("0.19.2", ("t", "p", "i", None, "n")),
    ],
)
def test_permute_result(monkeypatch: pytest.MonkeyPatch, release: str, expected: tuple) -> None:
    monkeypatch.setattr(moe, "locate", lambda: Upstream(release, Path("/checkout")))
    moe._permute_returns_five.cache_clear()
    try:
        assert moe.permute_result("t", "p", "i", "n") == expected
    finally:
        moe._permute_returns_five.cache_clear()
