"""What a pickle may name, what becomes a record, and that nothing else is called."""

import argparse
import collections
import contextlib
import io
import pickle
import sys
import types
from enum import Enum
from pathlib import Path
from signal import Signals
from typing import Any

import numpy
import pytest
import torch

from ascend_patch.checkpoint import safe_pickle
from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.safe_pickle import Record
from tests.unit_tests.checkpoint.evil import Call, payloads

FILE = Path("folder") / "some.pt"


def read(data: bytes, **options: Any) -> Any:
    return safe_pickle.load(io.BytesIO(data), FILE, **options)


def dumps_enum(value: Any, protocol: int) -> bytes:
    """A pickle of a call of `value`, a function of an enumeration that cannot be imported when the pickle is read."""
    module = types.ModuleType("megatron.core.some_enums")
    module.AttnBackend = Enum("AttnBackend", {"flash": 1, "fused": 2}, module=module.__name__)  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    try:
        return pickle.dumps(value(module.AttnBackend), protocol)
    finally:
        del sys.modules[module.__name__]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_arguments_of_a_training_run(protocol: int) -> None:
    args = argparse.Namespace(
        num_layers=3,
        params_dtype=torch.bfloat16,
        exit_signal=Signals.SIGTERM,
        data_path=["a", Path("b")],
        dims=torch.Size((1, 2)),
        device=torch.device("cpu"),
        raw=b"\0\xff",
        names={"a", "b"},
        order=collections.OrderedDict(x=1),
        rng=numpy.arange(3),
        simple=types.SimpleNamespace(y=2),
    )
    found = read(dumps_enum(lambda enum: argparse.Namespace(**vars(args), attention_backend=enum.fused), protocol))
    assert isinstance(found, argparse.Namespace)
    for name in ("num_layers", "params_dtype", "dims", "device", "raw", "names", "order"):
        assert getattr(found, name) == getattr(args, name), name
    assert found.attention_backend.args == (2,)
    assert type(found.attention_backend).__qualname__ == "AttnBackend"
    assert found.exit_signal.args == (15,)
    assert found.data_path[1].args == ("b",)
    assert found.simple.y == 2
    assert isinstance(found.rng, Record)
    assert "megatron.core.some_enums" not in sys.modules


@pytest.mark.parametrize("name", payloads(Path()))
@pytest.mark.parametrize("protocol", [2, 5])
def test_code_is_refused_by_name_and_does_not_run(name: str, protocol: int, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    value, used = payloads(trace)[name]
    with pytest.raises(CheckpointError) as caught:
        read(pickle.dumps(value, protocol))
    assert str(FILE) in str(caught.value) and used in str(caught.value) and "--trust-pickle" in str(caught.value)
    assert not trace.exists()


@pytest.mark.parametrize(
    "path",
    [
        ("os", "system"),
        ("torch", "os.system"),
        ("torch", "load"),
        ("torch", "hub.load"),
        ("torch.serialization", "load"),
        ("collections", "OrderedDict.__init__.__globals__"),
        ("argparse", "Namespace.__init__"),
        ("argparse", "_sys"),
        ("megatronx", "run"),
        ("numpyro", "run"),
        ("builtins", "__import__"),
        ("copyreg", "_reconstructor"),
        ("functools", "partial"),
    ],
)
def test_names_near_the_allowed_ones_are_refused(path: tuple[str, str]) -> None:
    data = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in path) + b"\x93."
    with pytest.raises(CheckpointError, match=rf"would call {path[0]}\.{path[1]},"):
        read(data)


def test_a_name_of_an_allowed_package_imports_nothing() -> None:
    data = b"\x80\x02cmegatron.no_such_module\nrun_this\nX\x02\x00\x00\x00ls\x85R."
    found = read(data)
    assert isinstance(found, Record) and found.args == ("ls",)
    assert "megatron.no_such_module" not in sys.modules


def build_on_class(module: str, name: str) -> bytes:
    """A pickle that sets `__setstate__` of a class that it names."""
    state = b"N}X\x0c\x00\x00\x00__setstate__cbuiltins\nset\ns\x86b."
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + state


@pytest.mark.parametrize("path", ["argparse Namespace", "megatron.core.x Y", "collections OrderedDict", "torch Size"])
def test_a_pickle_cannot_change_a_class_for_others(path: str) -> None:
    owners = (argparse.Namespace, Record, collections.OrderedDict, torch.Size)
    before = [dict(vars(owner)) for owner in owners]
    with contextlib.suppress(CheckpointError):
        read(build_on_class(*path.split()))
    assert [dict(vars(owner)) for owner in owners] == before


def test_a_pickle_can_change_its_own_class() -> None:
    """Or else the test before this one would test nothing."""
    assert read(build_on_class("argparse", "Namespace")).__setstate__ is set


def test_trust_calls_what_is_named(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    value, _ = payloads(trace)["system"]
    read(pickle.dumps(value), trust=True)
    assert trace.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a pickle",
        pickle.dumps({"a": [1, 2]})[:-3],
        pickle.dumps(Call(torch.Size, 3, 4, 5)),
        pickle.dumps(Call(collections.OrderedDict, 3)),
        b"\x80\x02X\x01\x00\x00\x00aQ.",
    ],
    ids=["empty", "text", "truncated", "call", "call2", "storage"],
)
def test_damage_is_told_with_the_file(data: bytes) -> None:
    with pytest.raises(CheckpointError, match="its pickle cannot be read .* damaged") as caught:
        read(data)
    assert str(FILE) in str(caught.value)


def test_a_codec_that_is_none_of_text_is_refused() -> None:
    data = b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R."
    with pytest.raises(CheckpointError, match="not a text encoding"):
        read(data)
