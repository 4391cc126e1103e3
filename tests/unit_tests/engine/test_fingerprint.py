"""What changes a fingerprint and what does not."""

import textwrap

import pytest

from ascend_patch.engine.fingerprint import Source, SourceTree


def tree(**modules: str) -> SourceTree:
    """A tree of modules; "a__b" stands for a.b, and one whose name ends in "__init__" is a package."""
    files = {}
    for name, text in modules.items():
        is_package = name.endswith("__init__")
        module = name.removesuffix("__init__").rstrip("_").replace("__", ".")
        files[module] = Source(textwrap.dedent(text).encode(), is_package)
    return SourceTree(files.get)


def take(text: str, qualname: str = "f"):
    return tree(m=text).fingerprint(f"m:{qualname}")


FUNCTION = "def f(a, b=1, *rest, key=None):\n    return a + b\n"


@pytest.mark.parametrize(
    "same",
    [
        "def f(a, b = 1, *rest, key = None):\n\n    # a comment\n    return (a +\n            b)\n",
        "def f(a: int, b: 'int | None' = 1, *rest: int, key: str = None) -> int:\n    return a + b\n",
        'def f(a, b=1, *rest, key=None):\n    """Docstring."""\n    return a + b\n',
        "x = 1\n\n\n" + FUNCTION,
    ],
)
def test_what_does_not_count(same):
    assert take(same) == take(FUNCTION)


@pytest.mark.parametrize(
    "changed",
    [
        "def f(a, c=1, *rest, key=None):\n    return a + b\n",
        "def f(a, b=2, *rest, key=None):\n    return a + b\n",
        "def f(a, b=1, *rest, key):\n    return a + b\n",
        "def f(a, b=1, key=None):\n    return a + b\n",
        "def f(a, /, b=1, *rest, key=None):\n    return a + b\n",
        "def f(a, b=1, *rest, key=None, **more):\n    return a + b\n",
    ],
)
def test_changed_signature(changed):
    assert take(changed).signature != take(FUNCTION).signature


@pytest.mark.parametrize(
    "changed",
    [
        "def f(a, b=1, *rest, key=None):\n    return a - b\n",
        "def f(a, b=1, *rest, key=None):\n    'doc'\n    'not a docstring'\n    return a + b\n",
        "@decorated\n" + FUNCTION,
        "async " + FUNCTION,
        "if x:\n    def f(a, b=1, *rest, key=None):\n        return a + b\n",
        FUNCTION + "@f.setter\n" + FUNCTION,
    ],
)
def test_changed_body(changed):
    assert take(changed).body != take(FUNCTION).body


def test_inner_docstrings_and_annotations_do_not_count():
    one = "def f():\n    def g(x):\n        return x\n    y = 1\n    return g"
    other = "def f():\n    def g(x: int):\n        'doc'\n        return x\n    y = 1\n    return g"
    assert take(one) == take(other)


@pytest.mark.parametrize("kind", ["", "@staticmethod", "@classmethod", "@property"])
def test_methods_of_every_kind(kind):
    found = take(f"class A:\n    class B:\n        {kind}\n        def f(self): return 1\n", "A.B.f")
    assert found.kind == "function" and found.signature


def test_class():
    base = take("class A(B):\n    def __init__(self, x): pass\n    def f(self): return 1\n", "A")
    body = take("class A(B):\n    def __init__(self, x): pass\n    def f(self): return 2\n", "A")
    init = take("class A(B):\n    def __init__(self, x, y): pass\n    def f(self): return 1\n", "A")
    bases = take("class A(C):\n    def __init__(self, x): pass\n    def f(self): return 1\n", "A")
    assert base.kind == "class"
    assert base.signature == body.signature and base.body != body.body
    assert len({base.signature, init.signature, bases.signature}) == 3


ADAM = """
    try:
        from te.optimizers import FusedAdam as Adam, FusedSGD as SGD
        FLAG = True
    except ImportError:
        from torch.optim import AdamW as Adam, SGD
        FLAG = False
    """


def test_name_bound_under_conditions():
    found = take(textwrap.dedent(ADAM), "Adam")
    assert (found.kind, found.signature) == ("name", "")
    renamed = textwrap.dedent(ADAM).replace("FusedSGD", "OtherSGD")
    assert take(renamed, "Adam") == found, "a neighbour in the same import statement does not count"
    for old, new in (("AdamW", "Adam"), ("except ImportError", "except ValueError"), ("te.opt", "apex.opt")):
        assert take(textwrap.dedent(ADAM).replace(old, new), "Adam").body != found.body, old


@pytest.mark.parametrize(
    "text",
    [
        "f = 1",
        "f: int = 1",
        "a, (f, b) = x",
        "import f",
        "import f.g",
        "import x as f",
        "from x import y as f",
    ]
    + ["with x:\n    f = 1", "for x in y:\n    f = x", "if a:\n    pass\nelif b:\n    f = 1", "f += 1"]
    + ["try:\n    pass\nfinally:\n    f = 1"],
)
def test_ways_to_bind_a_name(text):
    assert take(text).kind == "name"


@pytest.mark.parametrize("text", ["", "g = 1", "def g():\n    f = 1", "class f2: pass", "x.f = 1", "import g as h"])
def test_absent(text):
    assert take(text) is None


def test_absent_module_class_and_method():
    sources = tree(m="class A: pass")
    for symbol in ("gone:f", "m:Gone.f", "m:A.f", "m:A.B.f"):
        assert sources.fingerprint(symbol) is None


INHERITED = {
    "p____init__": "from .base import Base\n",
    "p__base": "class Root:\n    def f(self): return 1\nclass Base(Root): pass\n",
    "p__sub____init__": "",
    "p__sub__child": """
        import p.base as other
        from .. import Base as B
        class A(B): pass
        class C(other.Root): pass
        """,
}


def test_inherited_method_is_found_through_imports():
    sources = tree(**INHERITED)
    found = sources.fingerprint("p.sub.child:A.f")
    assert found.body == sources.fingerprint("p.base:Root.f").body == sources.fingerprint("p.sub.child:C.f").body
    assert found.modules == ("p.sub.child", "p", "p.base")


def test_inherited_method_changes_with_the_base():
    changed = tree(**INHERITED | {"p__base": INHERITED["p__base"].replace("return 1", "return 2")})
    assert changed.fingerprint("p.sub.child:A.f") != tree(**INHERITED).fingerprint("p.sub.child:A.f")


def test_class_that_seems_to_inherit_from_itself():
    assert take("from x import A\nclass A(A): pass", "A.f") is None
    assert take("class A(A): pass", "A.f") is None


def test_covers():
    sources = tree(up__core____init__="", up__core__x="")
    assert sources.covers("up.core.x") and sources.covers("up.core.vanished")
    assert not sources.covers("up.training.x") and not sources.covers("other")


def test_each_module_is_read_once():
    reads = []

    def read(module):
        reads.append(module)
        return Source(b"f = 1", False)

    sources = SourceTree(read)
    for _ in range(2):
        sources.fingerprint("m:f")
        sources.file_hash("m")
    assert reads == ["m"]
