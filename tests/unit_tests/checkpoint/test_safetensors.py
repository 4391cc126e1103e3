"""Headers of safetensors: against the library both ways, and damage."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ascend_patch.checkpoint import safetensors
from ascend_patch.checkpoint.errors import CheckpointError
from tests.unit_tests.checkpoint.places import DTYPES, load, random_bits, same_bits, store

several = settings(deadline=None, max_examples=30)
names = st.text('abcé._/0"\\', min_size=1, max_size=12)
shapes = st.lists(st.integers(0, 6), max_size=4).map(tuple)


@several
@given(
    content=st.dictionaries(names, st.tuples(shapes, st.sampled_from(list(safetensors.DTYPES.values()))), max_size=6)
)
def test_reads_what_the_library_writes(content: dict, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("read") / "model.safetensors"
    values = {name: random_bits(shape, dtype) for name, (shape, dtype) in content.items() if dtype != torch.bool}
    save_file(values, file)
    found = safetensors.read(file)
    assert found.keys() == values.keys()
    assert all(same_bits(load(found[name]), value) for name, value in values.items())


@several
@given(content=st.dictionaries(names, shapes, max_size=6), dtype=st.sampled_from(DTYPES))
def test_the_library_reads_what_is_stored_in_a_skeleton(
    content: dict, dtype: torch.dtype, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("create") / "model.safetensors"
    values = {name: random_bits(shape, dtype) for name, shape in content.items()}
    holes = safetensors.create(file, content, dtype)
    for name, value in values.items():
        store(holes[name], value)
        assert holes[name].offset % 2 == 0
    found = load_file(file)
    assert found.keys() == values.keys()
    assert all(same_bits(found[name], value) for name, value in values.items())
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}  # transformers asks for it


def test_a_skeleton_takes_no_space(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    holes = safetensors.create(file, {"large": (5, 2**30), "small": (3,)}, torch.bfloat16)
    assert file.stat().st_size > 10 * 2**30 and file.stat().st_blocks * 512 < 100_000
    value = random_bits((3,), torch.bfloat16)
    store(holes["small"], value)
    with safe_open(file, "pt") as opened:
        assert same_bits(opened.get_tensor("small"), value)


def test_an_existing_file_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    with pytest.raises(CheckpointError, match="exists already"):
        safetensors.create(tmp_path / "a", {}, torch.float32)
    assert (tmp_path / "a").read_text() == "mine"


def write(file: Path, header: Any, data: bytes = bytes(24)) -> Path:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(content).to_bytes(8, "little") + content + data)
    return file


def entry(begin: Any = 0, end: Any = 24, shape: Any = (2, 3), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_the_sound_header_of_the_damaged_ones(tmp_path: Path) -> None:
    tensor = safetensors.read(write(tmp_path / "model.safetensors", {"w": entry()}))["w"]
    assert (tensor.shape, tensor.dtype, tensor.nbytes) == ((2, 3), torch.float32, 24)


HALF = {"shape": (3,), "end": 12}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"w": entry(dtype="F4")}, "w has the dtype 'F4'; known are BOOL"),
        ({"w": entry(dtype="float32")}, "w has the dtype 'float32'"),
        ({"w": entry(dtype=None)}, "w has the dtype None"),
        ({"w": entry(dtype="F64")}, "w of dtype F64 and shape .* needs 48 bytes, but has those from 0 to 24"),
        ({"w": entry(shape=(2, -3))}, "entry of w is damaged"),
        ({"w": entry(shape=(2.0, 3))}, "entry of w is damaged"),
        ({"w": entry(shape="ab")}, "entry of w is damaged"),
        ({"w": entry(shape=6)}, "entry of w is damaged"),
        ({"w": entry(begin=-24, end=0)}, "entry of w is damaged"),
        ({"w": entry(begin=24, end=0)}, "w of dtype F32"),
        ({"w": entry(begin="0")}, "entry of w is damaged"),
        ({"w": {"dtype": "F32"}}, "entry of w is damaged"),
        ({"w": 5}, "entry of w is damaged"),
        ({"w": entry(end=48, shape=(12,))}, "is truncated: w ends at byte"),
        ({"w": entry(), "v": entry()}, "w and v share bytes|v and w share bytes"),
        ({"v": entry(**HALF), "w": entry(8, 20, (3,))}, "v and w share bytes"),
        ({"v": entry(**HALF), "w": entry(16, 24, (2,))}, "v and w have unused bytes"),
        ({"w": entry(12, 24, (3,))}, "the header and w have unused bytes"),
        ({"w": entry(**HALF)}, "12 bytes after its last tensor"),
        ({}, "24 bytes after its last tensor"),
        ([1], "is not the JSON of a safetensors file"),
        (b"{not json}", "is not the JSON of a safetensors file"),
        (b'{"w": "\xff"}', "is not the JSON of a safetensors file"),
        (b"[" * 100_000, "is not the JSON of a safetensors file"),
        (b'{"w": 1, "w": 2}', "its header has w twice"),
    ],
)
def test_damaged_headers_are_told(header: Any, message: str, tmp_path: Path) -> None:
    file = write(tmp_path / "model.safetensors", header)
    with pytest.raises(CheckpointError, match=message) as caught:
        safetensors.read(file)
    assert str(file) in str(caught.value)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3, 4), "b": torch.zeros(5, dtype=torch.bfloat16)}, file)
    return file


def test_every_truncation_is_an_error(saved: Path) -> None:
    content = saved.read_bytes()
    for size in range(len(content)):
        saved.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r"model\.safetensors.* truncated"):
            safetensors.read(saved)


@pytest.mark.parametrize("change", [lambda file: file.unlink(), lambda file: (file.unlink(), file.mkdir())])
def test_a_file_that_cannot_be_read(change: Callable[[Path], object], saved: Path) -> None:
    change(saved)
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        safetensors.read(saved)


def test_a_header_larger_than_the_format_allows(saved: Path) -> None:
    with saved.open("wb") as stream:
        stream.write((safetensors.MAX_HEADER + 1).to_bytes(8, "little"))
        stream.truncate(2 * safetensors.MAX_HEADER)
    with pytest.raises(CheckpointError, match="claims a header of 100000001"):
        safetensors.read(saved)
