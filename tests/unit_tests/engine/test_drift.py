"""The one rule of what stops a run and what is a notice."""

import pytest

from ascend_patch.engine.contract import Contract, Release
from ascend_patch.engine.drift import examine
from ascend_patch.engine.fingerprint import Source, SourceTree
from ascend_patch.engine.patch import Patch

RECORDED = "def target(x): return x\ndef consumer(x): return x\n"


def tree(text: str) -> SourceTree:
    return SourceTree(lambda module: Source(text.encode(), False) if module == "up" else None)


def patch(mode: str, *consumers: str) -> Patch:
    return Patch("a.b", "up:target", "impl:f", mode, ">=1,<2", "A test.", "Never.", consumers=consumers)


@pytest.mark.parametrize(
    ("text", "change", "wrap_is_error"),
    [
        (RECORDED, None, None),
        (RECORDED + "# another file hash", None, None),
        ("def target(x): return -x\ndef consumer(x): return x\n", ("up:target", "body"), False),
        ("def target(y): return y\ndef consumer(x): return x\n", ("up:target", "signature"), True),
        ("class target: pass\ndef consumer(x): return x\n", ("up:target", "signature"), True),
        ("def consumer(x): return x\n", ("up:target", "missing"), True),
        ("def target(x): return x\ndef consumer(x): return -x\n", ("up:consumer", "body"), False),
        ("def target(x): return x\ndef consumer(y): return y\n", ("up:consumer", "signature"), False),
        ("def target(x): return x\n", ("up:consumer", "missing"), False),
    ],
)
@pytest.mark.parametrize("mode", ["wrap", "replace"])
def test_rule(text, change, wrap_is_error, mode):
    one = patch(mode, "up:consumer")
    contract = Contract([Release.record("1.0", tree(RECORDED), ["up:target", "up:consumer"])])
    findings = examine(one, contract, tree(text))
    if change is None:
        assert findings == []
        return
    assert [(found.symbol, found.change) for found in findings] == [change]
    assert findings[0].is_error is (mode == "replace" or wrap_is_error)


@pytest.mark.parametrize("releases", [[], [Release.record("3.0", tree(RECORDED), ["up:target"])]])
def test_nothing_to_compare_with_is_an_error(releases):
    (finding,) = examine(patch("wrap"), Contract(releases), tree(RECORDED))
    assert finding.change == "unrecorded" and finding.is_error


def test_absence_of_a_consumer_can_be_recorded_that_of_a_target_cannot():
    recorded = Release.record("1.0", tree("def target(x): return x\n"), ["up:target", "up:consumer"])
    assert examine(patch("replace", "up:consumer"), Contract([recorded]), tree("def target(x): return x")) == []
    without = Release.record("1.0", tree(""), ["up:target"])
    (finding,) = examine(patch("wrap"), Contract([without]), tree(""))
    assert finding.change == "missing" and finding.is_error


def test_the_release_at_hand_is_compared_first_and_the_others_are_not_read():
    class Lazy(Contract):
        def release(self, version):
            assert version == "1.5", "read a release that was not needed"
            return super().release(version)

    records = [Release.record(version, tree(RECORDED), ["up:target"]) for version in ("1.1", "1.5", "1.9")]
    assert examine(patch("replace"), Lazy(records), tree(RECORDED), "1.5") == []
