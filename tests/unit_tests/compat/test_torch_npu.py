"""Pairs of releases, and whether the installed torch_npu has what a variant calls (on operators made up here)."""

import logging
import re
from pathlib import Path

import pytest
import torch
from packaging.version import Version

from ascend_patch.compat import torch_npu
from ascend_patch.engine.calls import calls_in
from ascend_patch.engine.operator_records import OperatorRelease, read, recorded
from ascend_patch.engine.schema import Schema
from ascend_patch.ops.registry import OPERATORS

ROOT = Path(__file__).resolve().parents[3]
ASCEND = (ROOT / "docs" / "ascend.md").read_text(encoding="utf-8")


@pytest.fixture
def reference(monkeypatch):
    """What the reference release is said to have."""

    def record(**texts: str) -> None:
        schemas = {name: Schema.parse(text) for name, text in texts.items()}
        monkeypatch.setattr(torch_npu.operator_records, "read", lambda _: OperatorRelease("1", "", schemas))

    return record


@pytest.fixture
def library():
    """The namespace `npu` of torch's operators, as a torch_npu that is installed fills it."""
    made = torch.library.Library("npu", "FRAGMENT")
    yield made
    made._destroy()


def test_an_operator_as_in_the_reference(reference, library):
    reference(npu_t1="(Tensor x, *, float eps=1e-6) -> Tensor")
    library.define("npu_t1(Tensor x, *, float eps=0.000001, int more=0) -> Tensor")
    assert torch_npu.examine_installed(calls_in("torch_npu.npu_t1(a, eps=1)")) == ()


def test_each_way_not_to_fit_is_told_once(reference, library):
    reference(npu_t2="(Tensor x, *, int mode=0) -> Tensor", npu_t3="(Tensor x) -> Tensor")
    library.define("npu_t2(Tensor x, *, int sparse=0) -> Tensor")
    source = "torch_npu.npu_t2(a, mode=1)\ntorch_npu.npu_t2(b, mode=2)\ntorch_npu.npu_t3(a)"
    found = [str(finding) for finding in torch_npu.examine_installed(calls_in(source))]
    assert found == [
        "npu_t2: the argument mode is called sparse there",
        "npu_t3: there is no such operator",
    ]


def test_overloads_are_seen(reference, library):
    reference(**{"npu_t4.out": "(Tensor x, *, Tensor[] out) -> Tensor"})
    library.define("npu_t4(Tensor x) -> Tensor")
    library.define("npu_t4.out(Tensor x, *, Tensor(a!)[] out) -> Tensor")
    (finding,) = torch_npu.examine_installed(calls_in("torch.ops.npu.npu_t4.out(a, out=b)"))
    assert finding.change == "type", "an alias annotation is part of the type"
    (finding,) = torch_npu.examine_installed(calls_in("torch.ops.npu.npu_t4.other(a, out=b)"))
    assert finding.change == "missing"


def test_a_problem_names_operator_and_reference(monkeypatch, reference, library, caplog):
    reference(npu_t5="(Tensor x, int k=1) -> Tensor")
    library.define("npu_t5(Tensor x, int k=2) -> Tensor")
    monkeypatch.setattr(torch_npu, "calls_of", lambda operator: calls_in("torch_npu.npu_t5(a)"))
    with caplog.at_level(logging.WARNING):
        assert torch_npu.problem("swiglu") is None
    assert "operator swiglu: with this torch_npu, npu_t5: the default of k is 2 and was 1" in caplog.messages
    monkeypatch.setattr(torch_npu, "calls_of", lambda operator: calls_in("torch_npu.npu_t5(a, b, c)"))
    reason = torch_npu.problem("swiglu")
    assert reason == (
        f"npu_t5: 3 positional arguments, and it takes 2; it is written against torch_npu {torch_npu.REFERENCE}"
    )


@pytest.mark.parametrize("operator", OPERATORS)
def test_calls_of_an_operator_fit_the_reference(operator):
    """What is installed when it is the reference: no variant may be passed over then."""
    calls = torch_npu.calls_of(operator)
    recorded_operators = read(torch_npu.REFERENCE).operators
    assert {call.operator for call in calls} <= recorded_operators
    assert all(call.called and not call.unread for call in calls)
    has_variant = (ROOT / "ascend_patch" / "ops" / operator / "npu.py").is_file()
    assert bool(calls) == has_variant


@pytest.mark.npu
@pytest.mark.parametrize("operator", OPERATORS)
def test_every_variant_fits_the_torch_npu_that_is_installed(operator):
    assert torch_npu.problem(operator) is None


# pairs


def test_pairs_are_of_recorded_releases():
    """A record says which torch the wheel asks for: the same as the table's."""
    for pair in torch_npu.PAIRINGS:
        assert Version(read(pair.torch_npu).torch.strip("=").removesuffix(".*")).base_version == pair.torch
        assert torch_npu.torch_of(pair.torch_npu) == pair.torch
    assert torch_npu.REFERENCE in recorded()


def test_pairs_are_listed_in_the_document():
    rows = re.findall(r"^\| (2\.\S+) \| (\S+) \| (\S+) \| (.+) \|$", ASCEND, re.MULTILINE)
    assert rows == [
        (pair.torch, pair.torch_npu, pair.cann, ", ".join(torch_npu.PYTHONS[torch_npu.minor(pair.torch)]))
        for pair in torch_npu.PAIRINGS
    ]
    assert torch_npu.SOURCE.partition(" ")[0] in ASCEND


@pytest.mark.parametrize(
    ("torch_version", "parts"),
    [
        ("2.9.0+cpu", ["'torch_npu==2.9.0'", "torch_npu 2.9.0.post6 with CANN 9.1.0"]),
        ("2.9.1", ["'torch_npu==2.9.1'", "torch_npu 2.9.0.post2 with CANN 9.0.0"]),
        ("2.14.0", ["'torch_npu==2.14.0'", "has no CANN for it"]),
    ],
)
def test_advice(torch_version, parts):
    text = torch_npu.advice(torch_version)
    assert all(part in text for part in parts)


def test_versions():
    assert torch_npu.minor("2.9.0.post6") == "2.9" and torch_npu.minor("none") == ""
    assert torch_npu.cann_of("2.9.0.post6") == "9.1.0" and torch_npu.cann_of("2.9.1") == ""
    assert torch_npu.older("8.3.RC1", "8.3.0") and not torch_npu.older("9.1.0", "9.0.0")
    assert not torch_npu.older("unreadable", "9.0.0")
