"""Whether a patch still fits an upstream: the one rule that the engine, the CLI and CI share.

A symbol is known-good when it equals what was recorded for any release inside the patch's range. Otherwise:

| what changed              | replace | wrap    |
|---------------------------|---------|---------|
| target missing            | error   | error   |
| target's signature        | error   | error   |
| target's body             | error   | notice  |
| a consumer, in any way    | error   | notice  |
| nothing recorded to compare | error | error   |
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ascend_patch.engine.contract import Contract, Release
from ascend_patch.engine.fingerprint import SourceTree
from ascend_patch.engine.patch import Patch

Change = Literal["missing", "signature", "body", "unrecorded"]

_TEXT: dict[Change, str] = {
    "missing": "does not exist",
    "signature": "has another signature than in any recorded release",
    "body": "has another body than in any recorded release",
    "unrecorded": "is not recorded for any release in range; run `ascend-patch contract --write`",
}


@dataclass(frozen=True)
class Finding:
    """One symbol that is not as recorded."""

    symbol: str
    change: Change
    is_error: bool

    def __str__(self) -> str:
        return f"{self.symbol} {_TEXT[self.change]}"


def examine(patch: Patch, contract: Contract, tree: SourceTree, version: str = "") -> list[Finding]:
    """Everything in `tree` that is not as `patch` expects it; empty when the patch holds.

    Args:
        patch: the patch in question. Whether it is meant for `version` is not looked at.
        contract: the recorded releases.
        tree: the upstream sources.
        version: a hint, the release that `tree` most likely is.
    """
    findings = []
    for symbol in (patch.target, *patch.consumers):
        change = _change(symbol, _candidates(patch, contract, version), tree)
        if change == "absent":
            change = "missing" if symbol == patch.target else None
        if change is not None:
            strict = patch.mode == "replace" or (symbol == patch.target and change != "body")
            findings.append(Finding(symbol, change, strict or change == "unrecorded"))
    return findings


def _candidates(patch: Patch, contract: Contract, version: str) -> Iterable[Release]:
    """Recorded releases inside the range, the most likely one first, so that the others need not be read."""
    versions = [candidate for candidate in contract.versions if patch.supports(candidate)]
    versions.sort(key=lambda candidate: candidate != version)
    return (contract.release(candidate) for candidate in versions)


def _change(symbol: str, releases: Iterable[Release], tree: SourceTree) -> Change | Literal["absent"] | None:
    """What happened to `symbol`; "absent" when it is missing from the tree as from a recorded release."""
    recorded = []
    for release in releases:
        if release.unchanged(symbol, tree):
            return None
        if symbol in release.symbols:
            recorded.append(release.symbols[symbol])
    found = tree.fingerprint(symbol)
    if found is None:
        return "absent" if None in recorded else "missing"
    known = [(one.kind, one.signature, one.body) for one in recorded if one is not None]
    if not known:
        return "unrecorded"
    if (found.kind, found.signature, found.body) in known:
        return None
    same_signature = any((found.kind, found.signature) == one[:2] for one in known)
    return "body" if same_signature else "signature"
