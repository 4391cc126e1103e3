"""Every kind of attribute can be replaced and comes back by identity."""

import functools
import pickle
import sys
import types

import pytest

from ascend_patch.engine.substitution import find_owner, is_bound, rebind_copies, substitute


def times_ten(original):
    def ten(*args):
        return 10 * original(*args)

    return ten


class Base:
    def inherited(self):
        return 4


class Upstream(Base):
    CONSTANT = 5

    def method(self):
        """Docstring of upstream."""
        return 1

    @staticmethod
    def static():
        return 2

    @classmethod
    def klass(cls):
        return 3 if cls is Upstream else 0

    @property
    def prop(self):
        """Documented."""
        return 6

    @prop.setter
    def prop(self, value):
        self.stored = value

    @functools.cached_property
    def cached(self):
        return 7

    def __new__(cls):
        return super().__new__(cls)


@pytest.mark.parametrize(
    ("name", "use", "value"),
    [
        ("method", lambda: Upstream().method(), 10),
        ("static", lambda: Upstream.static(), 20),
        ("klass", lambda: Upstream().klass(), 30),
        ("inherited", lambda: Upstream().inherited(), 40),
        ("prop", lambda: Upstream().prop, 60),
        ("cached", lambda: Upstream().cached, 70),
    ],
)
def test_descriptors_are_wrapped_and_restored_by_identity(name, use, value):
    before = vars(Upstream).get(name)
    original = use()
    done = substitute(Upstream, name, times_ten)
    assert use() == value == 10 * original
    assert type(vars(Upstream)[name]) is type(before or times_ten)
    assert done.restore()
    assert vars(Upstream).get(name) is before
    assert use() == original


def test_an_inherited_method_leaves_the_base_alone():
    done = substitute(Upstream, "inherited", times_ten)
    assert Base().inherited() == 4
    done.restore()
    assert "inherited" not in vars(Upstream)


def test_a_property_keeps_its_setter_and_docstring():
    done = substitute(Upstream, "prop", times_ten)
    instance = Upstream()
    instance.prop = 3
    assert instance.stored == 3 and vars(Upstream)["prop"].__doc__ == "Documented."
    done.restore()


def test_new_stays_a_staticmethod():
    before, calls = vars(Upstream)["__new__"], []

    def counted(original):
        def new(cls):
            calls.append(cls)
            return original(cls)

        return new

    done = substitute(Upstream, "__new__", counted)
    assert isinstance(vars(Upstream)["__new__"], staticmethod)
    assert isinstance(Upstream(), Upstream) and calls == [Upstream]
    done.restore()
    assert vars(Upstream)["__new__"] is before and isinstance(Upstream(), Upstream) and calls == [Upstream]


def test_a_function_keeps_its_identity_to_introspection():
    original = Upstream.method

    def impl(self):
        return "ours"

    done = substitute(Upstream, "method", lambda _: impl)
    new = Upstream.method
    assert new(None) == "ours" and new.__wrapped__ is original
    assert (new.__name__, new.__qualname__, new.__module__) == ("method", "Upstream.method", __name__)
    assert new.__doc__ == "Docstring of upstream."
    assert pickle.loads(pickle.dumps(new)) is new
    assert impl.__name__ == "impl" and not hasattr(impl, "__wrapped__"), "the implementation itself was changed"
    done.restore()


def test_a_replacement_keeps_defaults_closure_and_attributes():
    module = types.ModuleType("stub")
    module.f = lambda: None
    module.f.of_upstream, free = 1, 3

    def impl(a, b=2, *, c=free):
        return a, b, c, free

    impl.of_ours = 2
    substitute(module, "f", lambda _: impl)
    assert module.f(1) == (1, 2, 3, 3)
    assert (module.f.of_upstream, module.f.of_ours) == (1, 2)


def test_classes_and_constants_are_put_in_as_they_are():
    module = types.ModuleType("stub")
    module.Klass, module.FLAG, replacement = Upstream, False, type("Other", (), {})
    done = [substitute(module, "Klass", lambda _: replacement), substitute(module, "FLAG", lambda _: True)]
    assert module.Klass is replacement and module.FLAG is True and replacement.__name__ == "Other"
    for one in done:
        one.restore()
    assert module.Klass is Upstream and module.FLAG is False


def test_an_unbound_name_is_created_and_deleted():
    module = types.ModuleType("stub")
    assert not is_bound(module, "extension")
    done = substitute(module, "extension", lambda original: (original, "ours"))
    assert module.extension == (None, "ours")
    done.restore()
    assert not hasattr(module, "extension")


def test_a_wrap_that_declines_changes_nothing():
    original = Upstream.method
    substitute(Upstream, "method", lambda function: function)
    assert Upstream.method is original


def test_restore_leaves_what_somebody_else_set():
    module = types.ModuleType("stub")
    module.f = 1
    done = substitute(module, "f", lambda _: 2)
    module.f = 3
    assert not done.restore()
    assert module.f == 3


def test_stacked_substitutions_come_off_in_reverse():
    original = vars(Upstream)["static"]
    first = substitute(Upstream, "static", times_ten)
    second = substitute(Upstream, "static", times_ten)
    assert Upstream.static() == 200
    assert second.restore() and first.restore()
    assert vars(Upstream)["static"] is original


def test_find_owner():
    module = types.ModuleType("stub")
    module.Upstream = Upstream
    assert find_owner(module, "Upstream.method") == (Upstream, "method")
    assert find_owner(module, "Upstream") == (module, "Upstream")
    with pytest.raises(LookupError, match="stub has no Gone.method: 'Gone' is missing"):
        find_owner(module, "Gone.method")


def test_copies_bound_in_an_import_cycle_follow_and_return(monkeypatch):
    older, owner, younger = (types.ModuleType(f"stub_{name}") for name in ("older", "owner", "younger"))
    owner.f = original = lambda: "old"
    older.f = younger.alias = original
    for module in (older, owner, younger):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    done = substitute(owner, "f", lambda _: lambda: "new")
    rebind_copies(done)
    assert younger.alias() == "new" and done.also == [(younger, "alias")]
    assert older.f is original, "a module older than the owner cannot have been part of the cycle"
    done.restore()
    assert owner.f is original and younger.alias is original
