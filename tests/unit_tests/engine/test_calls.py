"""What is read of a call of an npu operator, on small sources."""

import pytest

from ascend_patch.engine.calls import Call, calls_in


def only(source: str) -> Call:
    (call,) = calls_in(source)
    return call


@pytest.mark.parametrize(
    "source",
    [
        "import torch_npu\ntorch_npu.npu_x(a, b, eps=1)",
        "import torch_npu as device\ndevice.npu_x(a, b, eps=1)",
        "from torch_npu import npu_x as fused\nfused(a, b, eps=1)",
        "import torch\ntorch.ops.npu.npu_x(a, b, eps=1)",
        "import torch\nnpu = torch.ops.npu\nnpu.npu_x(a, b, eps=1)",
        "from torch import ops\nops.npu.npu_x(a, b, eps=1)",
        "import torch_npu\ndef f():\n    call = torch_npu.npu_x\n    return call(a, b, eps=1)",
        "import torch_npu\nclass A:\n    def f(self):\n        if a:\n            [torch_npu.npu_x(a, b, eps=1)[0]]",
    ],
)
def test_ways_to_name_an_operator(source):
    call = next(call for call in calls_in(source) if call.called)
    assert (call.operator, call.overload, call.positional, call.keywords) == ("npu_x", "", 2, ("eps",))
    assert not call.unread and call.line == source.count("\n") + 1
    assert str(call) == "npu_x(2, eps=)"


@pytest.mark.parametrize(
    "source",
    [
        "torch_npu.npu.device_count()",
        "torch_npu.contrib.transfer_to_npu",
        "self.torch_npu.npu_x(a)",
        "torch.ops.aten.add(a, b)",
        "def f(torch_npu):\n    npu = torch_npu\n    'torch_npu.npu_x(a)'",
        "from .torch_npu import npu_x\nnpu_x(a)",
        "def f(npu_x):\n    return npu_x(a)",
    ],
)
def test_what_is_no_operator(source):
    assert calls_in(source) == ()


def test_overload():
    call = only("torch.ops.npu.npu_x.out(a, out=[b])")
    assert (call.name, call.positional, call.keywords) == ("npu_x.out", 1, ("out",))


def test_a_call_inside_a_call():
    assert [str(call) for call in calls_in("torch_npu.npu_x(torch_npu.npu_y(a), k=torch_npu.npu_z(b))")] == [
        "npu_x(1, k=)",
        "npu_y(1)",
        "npu_z(1)",
    ]


def test_an_operator_that_is_handed_on():
    call = only("partial(torch_npu.npu_x, dim=-1)")
    assert not call.called and str(call) == "npu_x"


@pytest.mark.parametrize(
    ("statement", "values"),
    [
        ("a, b = torch_npu.npu_x(x)", 2),
        ("(a,) = torch_npu.npu_x(x)", 1),
        ("a, *b = torch_npu.npu_x(x)", 0),
        ("a = torch_npu.npu_x(x)", 0),
        ("a, b = torch_npu.npu_x(x)[:2]", 0),
    ],
)
def test_how_many_results_are_expected(statement, values):
    assert only(statement).values == values


@pytest.mark.parametrize(
    ("before", "argument", "keywords"),
    [
        ("o = {'b': 1, 'a': 2}", "**o", ("a", "b")),
        ("o = dict(a=1)\n    o['b'] = 2", "**o", ("a", "b")),
        ("o: dict[str, int] = {}\n    if x:\n        o.update(a=1)\n    o.update({'b': 1})", "**o", ("a", "b")),
        ("if x:\n        o = {'a': 1}\n    else:\n        o = {'b': 1}", "**o", ("a", "b")),
        ("o = {'a': 1} if x else {'b': 2}", "**o", ("a", "b")),
        ("o = {'a': 1} | {'b': 2}", "**o", ("a", "b")),
        ("o = {'a': 1}\n    o |= {'b': 2}", "**o", ("a", "b")),
        ("o = {'a': 1}", "**{'b': 2, **o}", ("a", "b")),
        ("pass", "**options(x)", ("a", "b")),
        ("pass", "b=1, **{'a': 1}", ("b", "a")),
    ],
)
def test_dictionaries_are_followed(before, argument, keywords):
    source = f"def f(x):\n    {before}\n    torch_npu.npu_x(x, {argument})\n"
    source += "def options(x):\n    if x:\n        return {'a': 1}\n    return {'b': 1}\n"
    call = only(source)
    assert call.keywords == keywords and not call.unread


@pytest.mark.parametrize(
    ("before", "argument"),
    [
        ("pass", "**o"),
        ("o = {'a': 1}\n    o = options(x)", "**o"),
        ("o = {'a': 1}\n    o.update(options(x))", "**o"),
        ("o = {x: 1}", "**o"),
        ("pass", "**options(x)"),
        ("pass", "*x"),
    ],
)
def test_what_cannot_be_followed_is_said(before, argument):
    source = f"def f(x, o):\n    {before}\n    torch_npu.npu_x(x, {argument})\ndef options(x):\n    return x\n"
    call = only(source)
    assert call.unread == argument and call.positional == 1


def test_a_tuple_of_known_length():
    source = "def f(x, betas: tuple[float, float], rest: tuple[int, ...]):\n    torch_npu.npu_x(x, *betas{})"
    assert only(source.format("")).positional == 3
    assert only(source.format(", *rest")).unread == "*rest"


def test_a_parameter_hides_what_the_file_calls_so():
    source = "from torch_npu import npu_x\nO = {'a': 1}\ndef f(O):\n    npu_x(**O)\ndef g():\n    npu_x(**O)"
    hidden, seen = calls_in(source)
    assert hidden.unread == "**O" and seen.keywords == ("a",)
