"""Files of torch.save: places of tensors, skeletons, code in pickles, damage."""

import argparse
import collections
import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ascend_patch.checkpoint import torch_file
from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.stored import StoredTensor
from ascend_patch.checkpoint.torch_file import Strided
from tests.unit_tests.checkpoint.evil import payloads
from tests.unit_tests.checkpoint.places import DTYPES, load, random_bits, replace, same_bits, store

several = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])

keys = st.text("abcé._/0", min_size=1, max_size=12)
tensors = st.builds(
    random_bits,
    st.lists(st.integers(0, 5), max_size=4).map(tuple),
    st.sampled_from([*DTYPES, torch.float64, torch.float8_e4m3fn, torch.uint8, torch.int64, torch.uint16]),
)
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | keys | st.binary(max_size=5)
states = st.dictionaries(
    keys,
    st.recursive(tensors | plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3)),
    max_size=6,
)


def same(stored: Any, value: Any) -> bool:
    """Whether a file says what was saved in it."""
    if isinstance(value, torch.Tensor):
        return isinstance(stored, StoredTensor) and same_bits(load(stored), value)
    if isinstance(value, dict):
        return list(stored) == list(value) and all(same(stored[key], value[key]) for key in value)
    if isinstance(value, list):
        return len(stored) == len(value) and all(map(same, stored, value))
    return type(stored) is type(value) and stored == value


@several
@given(state=states)
def test_reads_what_torch_saves(state: dict, tmp_path: Path) -> None:
    file = tmp_path / "any.pt"
    torch.save(state, file)
    assert same(torch_file.read(file), state)


@several
@given(model=st.dictionaries(keys, tensors, max_size=5), extra=st.dictionaries(keys, plain, max_size=3))
def test_torch_loads_what_is_stored_in_a_skeleton(model: dict, extra: dict, tmp_path: Path) -> None:
    file = tmp_path / "new.pt"
    file.unlink(missing_ok=True)
    empty = {name: torch.empty_like(value, device="meta") for name, value in model.items()}
    holes = torch_file.create(file, {"model": [empty], "extra": extra})
    assert same(holes["extra"], extra)
    for name, value in model.items():
        store(holes["model"][0][name], value)
    for mmap in (False, True):
        loaded = torch.load(file, weights_only=False, mmap=mmap)  # weights_only refuses empty bytes
        assert loaded["extra"] == extra
        (found,) = loaded["model"]
        assert list(found) == list(model) and all(same_bits(found[name], model[name]) for name in model)


def test_a_skeleton_takes_no_space_whatever_its_size(tmp_path: Path) -> None:
    file = tmp_path / "large.pt"
    shapes = {"small": (3,), "large": (5, 2**29), "after": (7, 2)}
    holes = torch_file.create(file, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    assert file.stat().st_size > 10 * 2**30
    assert file.stat().st_blocks * 512 < 100_000
    values = {name: random_bits(shapes[name], torch.float32) for name in ("small", "after")}
    for name, value in values.items():
        store(holes[name], value)
    loaded = torch.load(file, mmap=True)
    assert all(same_bits(loaded[name], value) for name, value in values.items())
    assert {name: tuple(value.shape) for name, value in loaded.items()} == shapes
    assert holes["large"].nbytes == 10 * 2**30


def test_plain_objects_are_kept(tmp_path: Path) -> None:
    args = argparse.Namespace(num_layers=3, params_dtype=torch.bfloat16, name="é")
    torch_file.create(tmp_path / "a.pt", {"args": args, "iteration": 3})
    with torch.serialization.safe_globals([argparse.Namespace]):
        assert torch.load(tmp_path / "a.pt") == {"args": args, "iteration": 3}
    found = torch_file.read(tmp_path / "a.pt")
    assert isinstance(found["args"], argparse.Namespace) and vars(found["args"]) == vars(args)


def test_an_existing_file_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"a\.pt exists already"):
        torch_file.create(tmp_path / "a.pt", {})
    assert (tmp_path / "a.pt").read_text() == "mine"


def test_archives_one_after_the_other_in_one_file(tmp_path: Path) -> None:
    file, values = tmp_path / "__0_0.distcp", [random_bits((3, size), torch.bfloat16) for size in (4, 0, 9)]
    ends = [0]
    with file.open("wb") as stream:
        for value in values:
            torch_file.append(stream, torch.empty_like(value, device="meta"))
            ends.append(stream.tell())
    for start, end, value in zip(ends, ends[1:], values, strict=False):
        store(torch_file.read(file, start=start, length=end - start), value)
    content = file.read_bytes()
    for start, end, value in zip(ends, ends[1:], values, strict=False):
        assert same_bits(torch.load(io.BytesIO(content[start:end])), value)
    with pytest.raises(CheckpointError, match=f"{ends[-1]} bytes are expected at byte 5"):
        torch_file.read(file, start=5, length=ends[-1])


def test_tensors_that_share_a_storage(tmp_path: Path) -> None:
    """Tied weights, and parameters that are views of one buffer, as those of upstream's DDP."""
    buffer = random_bits((40,), torch.bfloat16)
    state = {"tied": buffer[5:25].view(4, 5), "same": buffer[5:25].view(4, 5), "other": buffer[25:].view(3, 5)}
    torch.save(state, tmp_path / "a.pt")
    found = torch_file.read(tmp_path / "a.pt")
    assert found["tied"] == found["same"]
    assert found["other"].offset == found["tied"].offset + 40
    assert same(found, state)


def test_kinds_of_tensors(tmp_path: Path) -> None:
    value = random_bits((4, 6), torch.float32)
    marked = value.clone()
    marked.tensor_model_parallel = True  # type: ignore[attr-defined]
    state = {"parameter": torch.nn.Parameter(value), "marked": marked, "row": value[2:3], "one": value[:, :1][1:2]}
    torch.save(collections.OrderedDict(state), tmp_path / "a.pt")
    found = torch_file.read(tmp_path / "a.pt")
    assert isinstance(found, collections.OrderedDict)
    assert same(dict(found), {name: tensor.detach() for name, tensor in state.items()})


def test_what_is_no_rectangle_is_told_apart(tmp_path: Path) -> None:
    value = random_bits((4, 6), torch.float32)
    torch.save({"turned": value.T, "column": value[:, 1], "one": value[0, 0].expand(3)}, tmp_path / "a.pt")
    assert torch_file.read(tmp_path / "a.pt") == {
        "turned": Strided((6, 4), (1, 6)),
        "column": Strided((4,), (6,)),
        "one": Strided((3,), (0,)),
    }


@pytest.mark.parametrize("name", payloads(Path()))
def test_code_is_refused_and_does_not_run(name: str, tmp_path: Path) -> None:
    file, trace = tmp_path / "pytorch_model.bin", tmp_path / "trace"
    value, used = payloads(trace)[name]
    torch.save({"model.norm.weight": torch.ones(3), "extra": value}, file)
    with pytest.raises(CheckpointError) as caught:
        torch_file.read(file)
    assert str(file) in str(caught.value) and used in str(caught.value)
    assert not trace.exists()


def test_trusted_code_runs(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save({"weight": torch.ones(3), "extra": payloads(trace)["system"][0]}, tmp_path / "a.pt")
    assert same(torch_file.read(tmp_path / "a.pt", trust=True)["weight"], torch.ones(3))
    assert trace.exists()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    file = tmp_path / "model.pt"
    torch.save({"weight": torch.arange(12.0).view(3, 4)}, file)
    return file


def test_every_truncation_is_an_error(saved: Path) -> None:
    content = saved.read_bytes()
    for size in [*range(0, len(content), 37), len(content) - 1]:
        saved.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r"model\.pt is no zip archive .* truncated"):
            torch_file.read(saved)


def test_random_damage_is_an_error_or_harmless(saved: Path) -> None:
    """No byte that changes gives another exception, or a place outside of the file."""
    content = saved.read_bytes()
    for at in range(len(content)):
        saved.write_bytes(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
        try:
            found = torch_file.read(saved)
        except CheckpointError as error:
            assert str(saved) in str(error)
        else:
            for tensor in (found or {}).values() if isinstance(found, dict) else ():
                assert not isinstance(tensor, StoredTensor) or load(tensor).numel() >= 0


def rezip(file: Path, change: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(file) as old:
        records = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(file, "w", compression) as new:
        for name, content in {**records, **change}.items():
            new.writestr(name, content)


def test_records_in_another_order_are_found_by_their_names(tmp_path: Path) -> None:
    values = [random_bits((4,), torch.float32) for _ in range(3)]
    file = tmp_path / "a.pt"
    torch.save(values, file)
    with zipfile.ZipFile(file) as old:
        records = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(file, "w") as new:
        for name in reversed(records):
            new.writestr(name, records[name])
    assert same(torch_file.read(file), values)


@pytest.mark.parametrize(
    ("change", "compression", "message"),
    [
        ({"model/byteorder": b"big"}, zipfile.ZIP_STORED, "big-endian"),
        ({"model/data/0": bytes(47)}, zipfile.ZIP_STORED, "its record data/0 has 47 bytes, but should have 48"),
        ({"other/data.pkl": b""}, zipfile.ZIP_STORED, "not one of torch.save"),
        ({}, zipfile.ZIP_DEFLATED, "is compressed"),
    ],
)
def test_archives_that_torch_did_not_write(change: dict, compression: int, message: str, saved: Path) -> None:
    rezip(saved, change, compression)
    with pytest.raises(CheckpointError, match=message) as caught:
        torch_file.read(saved)
    assert str(saved) in str(caught.value)


def test_a_tensor_larger_than_its_storage(saved: Path) -> None:
    replace(saved, b"K\x03K\x04\x86", b"K\x04K\x04\x86")
    message = r"float32 tensor of shape \(4, 4\) is not inside of its storage of 48 bytes"
    with pytest.raises(CheckpointError, match=message):
        torch_file.read(saved)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"K\x03K\x04\x86", b"K\x03\x89N\x86"),
        (b"QK\x00K\x03", b"QNNK\x03"),
        (b"ctorch\nFloatStorage", b"cmegatron\nxxStorage"),
    ],
    ids=["shape", "offset", "dtype"],
)
def test_a_tensor_with_other_things_than_numbers(old: bytes, new: bytes, saved: Path) -> None:
    replace(saved, old, new)
    with pytest.raises(CheckpointError, match=r"model\.pt.* damaged"):
        torch_file.read(saved)


def test_other_files(tmp_path: Path) -> None:
    legacy, other, absent = tmp_path / "legacy.pt", tmp_path / "other.zip", tmp_path / "absent.pt"
    torch.save({"weight": torch.ones(3)}, legacy, _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(other, "w") as new:
        new.writestr("readme", "hello")
    for file, message in ((legacy, "before 1.6"), (other, "no data.pkl"), (absent, "No such file")):
        with pytest.raises(CheckpointError, match=message):
            torch_file.read(file)
