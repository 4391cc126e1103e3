"""Choosing variants: by device, by name, and what happens when one cannot be had."""

import importlib
import importlib.resources
import inspect
import logging
import subprocess
import sys
from collections import Counter

import pytest
import torch

import ascend_patch.ops
from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.ops import registry
from ascend_patch.ops.permute import permute, unpermute
from ascend_patch.ops.swiglu import swiglu


@pytest.fixture(autouse=True)
def _leave_no_selection(monkeypatch):
    monkeypatch.setattr(registry, "_selected", {})
    monkeypatch.setattr(registry, "_named", set())
    monkeypatch.setattr(registry, "_calls", Counter())
    monkeypatch.setattr(registry, "_refused", Counter())


def test_torch_is_the_default():
    assert registry.selected() == dict.fromkeys(registry.OPERATORS, "torch")
    assert registry.implementation("swiglu").__name__ == "ascend_patch.ops.swiglu.torch"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_select_by_device(device):
    assert registry.select(device) == dict.fromkeys(registry.OPERATORS, "torch")


def test_a_named_variant_is_used_and_the_others_follow_the_device():
    chosen = registry.select("cpu", {"swiglu": "reference"})
    assert chosen == dict.fromkeys(registry.OPERATORS, "torch") | {"swiglu": "reference"}
    assert registry.implementation("swiglu").__name__ == "ascend_patch.ops.swiglu.reference"


def test_selecting_again_replaces_the_selection():
    registry.select("cpu", {"swiglu": "reference"})
    assert registry.select("cpu")["swiglu"] == "torch"


def test_public_function_runs_the_selected_variant(monkeypatch):
    from ascend_patch.ops.swiglu import reference

    monkeypatch.setattr(reference, "swiglu", lambda x, probs: "the reference")
    registry.select("cpu", {"swiglu": "reference"})
    assert swiglu(torch.zeros(1, 2)) == "the reference"


@pytest.mark.parametrize(
    ("device", "choices", "message"),
    [
        ("tpu", {}, "Unknown device 'tpu'; known are cpu, cuda, npu"),
        ("cpu", {"swigloo": "torch"}, "Unknown operator 'swigloo'.*Did you mean 'swiglu'"),
        ("cpu", {"swiglu": "refrence"}, "Unknown variant of swiglu 'refrence'.*Did you mean 'reference'"),
    ],
)
def test_unknown_names(device, choices, message):
    with pytest.raises(ValueError, match=message):
        registry.select(device, choices)


def without(monkeypatch, missing):
    """Let the variant modules in ``missing`` fail to import."""
    load = importlib.import_module

    def import_module(name):
        if name in missing:
            raise ImportError(f"{name} needs a library that is not here")
        return load(name)

    monkeypatch.setattr(registry.importlib, "import_module", import_module)


def test_a_named_variant_that_cannot_be_loaded_raises_and_changes_nothing(monkeypatch):
    registry.select("cpu", {"adam": "reference"})
    without(monkeypatch, {"ascend_patch.ops.swiglu.npu"})
    with pytest.raises(ValueError, match="npu variant of the operator swiglu.*needs a library"):
        registry.select("cpu", {"swiglu": "npu"})
    assert registry.selected()["adam"] == "reference"


def existing(monkeypatch, variants):
    """Let only ``variants`` (by operator) exist beside ``reference`` and ``torch``."""
    monkeypatch.setattr(registry, "_existing", lambda operator: ["reference", "torch", *variants.get(operator, ())])


def test_operators_without_the_preferred_variant_are_named_in_one_line(monkeypatch, caplog):
    existing(monkeypatch, {})
    with caplog.at_level(logging.INFO, logger=registry.__name__):
        assert registry.select("npu") == dict.fromkeys(registry.OPERATORS, "torch")
        for operator in registry.OPERATORS:
            registry.implementation(operator)
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert record.getMessage() == f"no npu variant, so that the next one runs: {', '.join(registry.OPERATORS)}"


def test_operators_that_are_named_or_have_the_variant_are_not_in_that_line(monkeypatch, caplog):
    existing(monkeypatch, {"swiglu": ["npu"]})
    load = importlib.import_module
    monkeypatch.setattr(registry.importlib, "import_module", lambda name: load(name.replace(".npu", ".reference")))
    monkeypatch.setattr(registry.torch_npu, "problem", lambda operator: None)
    with caplog.at_level(logging.INFO, logger=registry.__name__):
        registry.select("npu", {"adam": "reference"})
    (record,) = caplog.records
    names = record.getMessage().partition(": ")[2].split(", ")
    assert names == [operator for operator in registry.OPERATORS if operator not in ("adam", "swiglu")]


def test_a_variant_that_exists_and_cannot_be_loaded_is_a_warning(monkeypatch, caplog):
    existing(monkeypatch, {"adam": ["npu"]})
    without(monkeypatch, {"ascend_patch.ops.adam.npu"})
    with caplog.at_level(logging.WARNING, logger=registry.__name__):
        assert registry.select("npu")["adam"] == "torch"
    (record,) = caplog.records
    assert "operator adam: its npu variant cannot be loaded (ascend_patch.ops.adam.npu needs" in record.getMessage()


def refuse(*args):
    raise registry.Unsupported("an odd last dimension; even ones are allowed")


@pytest.fixture
def reference_refuses(monkeypatch):
    """swiglu's ``reference`` stands for a variant with limits, chosen by the device."""
    from ascend_patch.ops.swiglu import reference

    monkeypatch.setattr(reference, "swiglu", refuse)
    monkeypatch.setitem(registry._PREFERENCES, "cpu", ("reference", "torch"))


def test_an_unsupported_call_is_taken_by_the_portable_variant_and_logged_once(reference_refuses, caplog):
    registry.select("cpu")
    x = torch.randn(3, 4)
    with caplog.at_level(logging.WARNING, logger=registry.__name__):
        first, second = swiglu(x), swiglu(x)
    a, b = x.chunk(2, -1)
    torch.testing.assert_close(first, torch.nn.functional.silu(a) * b)
    assert torch.equal(first, second)
    (record,) = caplog.records
    assert record.getMessage() == (
        "operator swiglu: torch variant instead of reference: an odd last dimension; even ones are allowed"
    )
    assert registry.report()["swiglu"] == {
        "variant": "reference",
        "calls": {"swiglu": {"torch": 2}},
        "unsupported": {"an odd last dimension; even ones are allowed": 2},
    }


def test_an_unsupported_call_of_a_named_variant_is_an_error(reference_refuses):
    registry.select("cpu", {"swiglu": "reference"})
    with pytest.raises(AscendPatchError, match="reference variant of the operator swiglu .* an odd last dimension"):
        swiglu(torch.randn(3, 4))
    assert registry.report()["swiglu"]["calls"] == {}


def test_the_portable_variant_must_take_every_call(monkeypatch):
    from ascend_patch.ops.swiglu import torch as portable

    monkeypatch.setattr(portable, "swiglu", refuse)
    with pytest.raises(registry.Unsupported, match="odd last dimension"):
        swiglu(torch.randn(3, 4))


def test_calls_are_counted_by_function_and_variant_and_from_zero_by_each_selection():
    x = torch.randn(4, 3)
    registry.select("cpu", {"permute": "reference"})
    permuted, _, order = permute(x, torch.ones(4, 2, dtype=torch.bool), None, 8)
    for _ in range(3):
        unpermute(permuted, order, x.shape)
    report = registry.report()
    assert set(report) == set(registry.OPERATORS)
    assert report["permute"] == {
        "variant": "reference",
        "calls": {"permute": {"reference": 1}, "unpermute": {"reference": 3}},
        "unsupported": {},
    }
    assert report["swiglu"] == {"variant": "torch", "calls": {}, "unsupported": {}}
    registry.select("cpu")
    assert registry.report()["permute"]["calls"] == {}


def test_a_call_that_fails_is_not_counted(monkeypatch):
    from ascend_patch.ops.swiglu import torch as portable

    def fail(*args):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(portable, "swiglu", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        swiglu(torch.randn(3, 4))
    assert registry.report()["swiglu"]["calls"] == {}


@pytest.fixture
def npu_lacks_an_argument(monkeypatch):
    """swiglu has an npu variant, and the torch_npu that is installed has not what it calls."""
    existing(monkeypatch, {"swiglu": ["npu"]})
    load = importlib.import_module
    monkeypatch.setattr(registry.importlib, "import_module", lambda name: load(name.replace(".npu", ".reference")))
    monkeypatch.setattr(registry.torch_npu, "problem", lambda operator: "npu_swiglu: it has no argument dim")


def test_a_variant_that_does_not_fit_torch_npu_is_passed_over(npu_lacks_an_argument, caplog):
    with caplog.at_level(logging.WARNING, logger=registry.__name__):
        assert registry.select("npu")["swiglu"] == "torch"
    (record,) = caplog.records
    assert record.getMessage() == (
        "operator swiglu: its npu variant cannot be loaded (npu_swiglu: it has no argument dim)"
    )


def test_a_named_variant_that_does_not_fit_torch_npu_is_an_error(npu_lacks_an_argument):
    with pytest.raises(ValueError, match="npu variant of the operator swiglu was asked for .* no argument dim"):
        registry.select("npu", {"swiglu": "npu"})


@pytest.mark.parametrize("operator", registry.OPERATORS)
@pytest.mark.parametrize("variant", ["reference", "torch", pytest.param("npu", marks=pytest.mark.npu)])
def test_variants_have_the_functions_of_the_package(operator, variant):
    package = importlib.import_module(f"ascend_patch.ops.{operator}")
    module = importlib.import_module(f"ascend_patch.ops.{operator}.{variant}")
    own = [
        (name, function)
        for name, function in vars(package).items()
        if inspect.isfunction(function) and function.__module__ == package.__name__
    ]
    functions = [(name, function) for name, function in own if "run" in function.__code__.co_names]
    assert functions
    for name, function in functions:
        assert list(inspect.signature(getattr(module, name)).parameters) == list(inspect.signature(function).parameters)


def test_every_package_is_registered():
    folder = importlib.resources.files(ascend_patch.ops)
    packages = {entry.name for entry in folder.iterdir() if entry.joinpath("__init__.py").is_file()}
    assert packages == set(registry.OPERATORS)


def test_operators_do_not_import_megatron():
    modules = [f"ascend_patch.ops.{o}.{v}" for o in registry.OPERATORS for v in ("reference", "torch")]
    code = f"import sys, {', '.join(modules)}; sys.exit('megatron' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
