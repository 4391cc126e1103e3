"""Substitutions come back as the identical objects."""

from types import ModuleType

from ascend_patch.devices.substitute import Substitutions


class Base:
    def inherited(self) -> str:
        return "base"


class Owner(Base):
    value = 1

    @staticmethod
    def static() -> str:
        return "static"

    @classmethod
    def of_class(cls) -> str:
        return cls.__name__


def test_revert_restores_identity_and_descriptors():
    before = dict(vars(Owner))
    substitutions = Substitutions()
    substitutions.set(Owner, "value", 2)
    substitutions.set(Owner, "value", 3)
    substitutions.set(Owner, "static", staticmethod(lambda: "other"))
    substitutions.wrap(Owner, "of_class", lambda original: lambda: original() + "!")
    substitutions.set(Owner, "inherited", lambda self: "derived")
    substitutions.set(Owner, "new", "new")

    assert (Owner.value, Owner.static(), Owner.of_class(), Owner().inherited(), Owner.new) == (
        3,
        "other",
        "Owner!",
        "derived",
        "new",
    )
    substitutions.revert()

    after = dict(vars(Owner))
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    assert Owner().inherited() == "base"


def test_set_in_all_follows_the_same_object_only():
    first, same, other, without = (ModuleType(name) for name in ("first", "same", "other", "without"))
    first.f = same.f = original = object()
    other.f = unrelated = object()
    substitutions = Substitutions()

    substitutions.set_in_all((first, same, other, without), "f", replacement := object())
    assert (first.f, same.f, other.f) == (replacement, replacement, unrelated)
    assert not hasattr(without, "f")

    substitutions.revert()
    assert first.f is original and same.f is original


def test_set_in_all_adds_an_absent_name_to_the_first_only():
    first, second = ModuleType("first"), ModuleType("second")
    substitutions = Substitutions()
    substitutions.set_in_all((first, second), "f", 1)
    assert first.f == 1 and not hasattr(second, "f")
    substitutions.revert()
    assert not hasattr(first, "f")


def test_revert_runs_callbacks_in_reverse_order_and_can_be_repeated():
    order = []
    substitutions = Substitutions()
    substitutions.on_revert(lambda: order.append("first"))
    substitutions.on_revert(lambda: order.append("second"))
    substitutions.revert()
    substitutions.revert()
    assert order == ["second", "first"]
