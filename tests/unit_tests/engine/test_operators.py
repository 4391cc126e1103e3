"""Does a call fit: each way in which a release can differ, on made-up operators."""

import pytest

from ascend_patch.engine.calls import calls_in
from ascend_patch.engine.operators import examine
from ascend_patch.engine.schema import Schema


def known(**texts: str) -> dict[str, Schema]:
    return {name.replace("__", "."): Schema.parse(text) for name, text in texts.items()}


REFERENCE = known(npu_x="(Tensor input, Tensor? mask=None, *, int mode=0, float eps=1e-6) -> (Tensor, Tensor)")
CALL = "y, z = torch_npu.npu_x(a, b, mode=1)"


def changes(source: str, found: dict[str, Schema], reference: dict[str, Schema] = REFERENCE) -> list[str]:
    (call,) = calls_in(source)
    return [finding.change for finding in examine(call, found, reference)]


def test_the_reference_fits_itself():
    assert changes(CALL, REFERENCE) == []


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("(Tensor input, Tensor? mask=None, *, int mode=0, float eps=1e-6, int more=0) -> (Tensor, Tensor)", []),
        ("(Tensor input, Tensor? mask=None, int mode=0, float eps=1e-6) -> (Tensor, Tensor)", []),
        ("(Tensor x, Tensor? mask=None, *, int mode=0, float eps=1e-6) -> (Tensor, Tensor)", []),
        ("(Tensor input, Tensor? mask=None, *, SymInt? mode=0, float eps=1e-6) -> (Tensor, Tensor)", []),
        ("(Tensor input, Tensor? mask=None, *, float eps=1e-6) -> (Tensor, Tensor)", ["argument"]),
        ("(Tensor input, Tensor? mask=None, *, int sparse=0, float eps=1e-6) -> (Tensor, Tensor)", ["renamed"]),
        ("(Tensor input, *, Tensor? mask=None, int mode=0, float eps=1e-6) -> (Tensor, Tensor)", ["positional"]),
        ("(Tensor? mask, Tensor? input, *, int mode=0) -> (Tensor, Tensor)", ["positional", "positional"]),
        ("(Tensor input, Tensor? mask, *, int mode, int must) -> (Tensor, Tensor)", ["required"]),
        ("(Tensor input, Tensor mask, *, int mode=0, float eps=1e-6) -> (Tensor, Tensor)", ["type"]),
        ("(Tensor input, Tensor? mask, *, int[] mode, float eps=1e-6) -> (Tensor, Tensor)", ["type"]),
        ("(Tensor input, Tensor? mask=None, *, int mode=0, float eps=1e-5) -> (Tensor, Tensor)", ["default"]),
        ("(Tensor input, Tensor? mask=None, *, int mode=7, float eps=1e-6) -> (Tensor, Tensor)", []),
        ("(Tensor input, Tensor? mask, *, int mode=0, float eps=1e-6) -> (Tensor, int)", ["returns"]),
        ("(Tensor input, Tensor? mask, *, int mode=0, float eps=1e-6) -> Tensor", ["returns", "returns"]),
    ],
)
def test_another_release(text, change):
    assert changes(CALL, known(npu_x=text)) == change


def test_a_missing_operator():
    (finding,) = examine(calls_in(CALL)[0], known(npu_y="() -> Tensor"), REFERENCE)
    assert finding.stops and str(finding) == "npu_x: there is no such operator"


def test_a_renamed_argument_is_named():
    renamed = known(npu_x="(Tensor input, Tensor? mask, *, int sparse=0, float eps=1e-6) -> (Tensor, Tensor)")
    (finding,) = examine(calls_in(CALL)[0], renamed, REFERENCE)
    assert finding.stops and finding.detail == "the argument mode is called sparse there"


def test_another_default_stops_nothing():
    other = known(npu_x="(Tensor input, Tensor? mask, *, int mode=0, float eps=1e-5) -> (Tensor, Tensor)")
    (finding,) = examine(calls_in(CALL)[0], other, REFERENCE)
    assert not finding.stops and finding.detail == "the default of eps is 1e-05 and was 1e-06"


@pytest.mark.parametrize(
    ("source", "change"),
    [
        ("torch_npu.npu_x(a, b, 1)", "positional"),
        ("torch_npu.npu_x(a, input=b)", "positional"),
        ("torch_npu.npu_x(a, nonsense=b)", "argument"),
        ("torch_npu.npu_x(mask=b)", "required"),
        ("x, y, z = torch_npu.npu_x(a)", "returns"),
        ("torch_npu.npu_x(a, **rest)", "unread"),
    ],
)
def test_a_call_that_is_wrong_everywhere(source, change):
    assert changes(source, REFERENCE) == [change]


def test_what_is_unread_is_told_and_stops_nothing():
    (finding,) = examine(calls_in("torch_npu.npu_x(*a)")[0], REFERENCE, REFERENCE)
    assert not finding.stops and "*a cannot be read" in finding.detail


OVERLOADED = known(
    npu_x="(Tensor x, *, Tensor? ends=None) -> Tensor[]", npu_x__List="(Tensor x, *, int[]? ends=None) -> Tensor[]"
)


@pytest.mark.parametrize(
    ("call", "kept", "change"),
    [
        ("npu_x(a, ends=b)", ("npu_x", "npu_x.List"), []),
        ("npu_x(a, ends=b)", ("npu_x",), []),
        ("npu_x.List(a, ends=b)", ("npu_x",), ["missing"]),
        ("npu_x.default(a, ends=b)", ("npu_x",), []),
        ("npu_x.default(a, ends=b)", ("npu_x.List",), ["missing"]),
        ("npu_x(a, ends=b)", ("npu_x.List",), ["type"]),
    ],
)
def test_overloads(call, kept, change):
    found = {name: OVERLOADED[name] for name in kept}
    reference = OVERLOADED if "." in call else {"npu_x": OVERLOADED["npu_x"]}
    assert changes(f"torch.ops.npu.{call}", found, reference) == change


def test_a_list_of_results_can_have_any_length():
    assert changes("(y,) = torch_npu.npu_x(a)", OVERLOADED, OVERLOADED) == []


def test_an_operator_that_is_handed_on_must_be_the_same():
    assert changes("partial(torch_npu.npu_x)", REFERENCE) == []
    assert changes("partial(torch_npu.npu_x)", known(npu_x="(Tensor input) -> Tensor")) == ["type"]
