"""A declaration that contradicts itself is refused when it is made."""

import dataclasses

import pytest

from ascend_patch.engine.errors import DeclarationError
from ascend_patch.engine.patch import Environment, Patch, always

GOOD = Patch(
    id="moe.router",
    target="up.module:Class.method",
    impl="impl.module:f",
    mode="wrap",
    upstream=">=0.17,<0.20",
    reason="A test.",
    remove_when="Never.",
)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("id", "Moe.Router", "lower-case dotted name"),
        ("id", "moe..router", "lower-case dotted name"),
        ("target", "up.module.Class", "package.module:qualname"),
        ("target", "up.module:", "package.module:qualname"),
        ("impl", "impl", "package.module:qualname"),
        ("consumers", ("up.module",), "package.module:qualname"),
        ("mode", "around", "'wrap' or 'replace'"),
        ("upstream", "0.17", "PEP 440"),
        ("reason", " ", "reason is empty"),
        ("remove_when", "", "remove_when is empty"),
    ],
)
def test_malformed_fields(field, value, message):
    with pytest.raises(DeclarationError, match=message):
        dataclasses.replace(GOOD, **{field: value})


def test_parts_of_the_target():
    assert (GOOD.module, GOOD.qualname) == ("up.module", "Class.method")


@pytest.mark.parametrize(
    ("version", "supported"),
    [
        ("0.16.1", False),
        ("0.17", True),
        ("0.19.2", True),
        ("0.19.2+abc123", True),
        ("0.19.3rc0", True),
        ("0.20.0", False),
        ("0.20.0rc0", False),
        ("", True),
        ("unknown", True),
    ],
)
def test_supports(version, supported):
    assert GOOD.supports(version) is supported


def test_default_condition_applies_everywhere():
    assert GOOD.when is always and always(Environment("npu", "")) is None


def test_patches_are_frozen_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GOOD.id = "other"
    assert {GOOD: 1}[dataclasses.replace(GOOD)] == 1
