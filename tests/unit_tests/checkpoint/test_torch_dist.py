"""Folders of torch.distributed.checkpoint: read, laid out for PyTorch and Megatron-LM to load, refused, damaged."""

import argparse
import dataclasses
import itertools
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import MetadataIndex

from ascend_patch.checkpoint import torch_dist
from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.torch_dist import DistCheckpoint, Shard
from tests.unit_tests.checkpoint.evil import payloads
from tests.unit_tests.checkpoint.places import DTYPES, load, random_bits, same_bits, store
from tests.upstream import INSTALLED, RELEASES, environment

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated"),
]

LOADER = Path(__file__).with_name("dist_loader.py")


def grid(key: str, value: torch.Tensor, cuts: list[list[int]]) -> list[Shard]:
    """The shards of a tensor that is cut at the given places of each dimension."""
    edges = [[0, *cut, size] for cut, size in zip(cuts, value.shape, strict=True)]
    boxes = itertools.product(*(list(itertools.pairwise(edge)) for edge in edges))
    return [
        Shard(key, tuple(value.shape), tuple(a for a, _ in box), tuple(b - a for a, b in box), value.dtype)
        for box in boxes
    ]


def part(value: torch.Tensor, offsets: tuple[int, ...], shape: tuple[int, ...]) -> torch.Tensor:
    return value[tuple(slice(start, start + size) for start, size in zip(offsets, shape, strict=True))]


def write(folder: Path, ranks: list[list[Shard]], values: dict[str, torch.Tensor], **other: Any) -> None:
    folder.mkdir(exist_ok=True)
    holes = torch_dist.create(folder, ranks, objects=other.get("objects", {}), common=other.get("common", {}))
    for shards, places in zip(ranks, holes, strict=True):
        for shard, place in zip(shards, places, strict=True):
            store(place, part(values[shard.key], shard.offsets, shard.shape))


def read(folder: Path) -> dict[str, torch.Tensor]:
    """The whole tensors, put together from their chunks."""
    checkpoint = DistCheckpoint(folder)
    found = {}
    for key, whole in checkpoint.tensors.items():
        found[key] = torch.zeros(whole.shape, dtype=whole.dtype)
        for chunk in checkpoint.chunks(key):
            part(found[key], chunk.offsets, chunk.tensor.shape).copy_(load(chunk.tensor))
    return found


def same_state(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(same_bits(one[key], other[key]) for key in one)


@st.composite
def cut_tensors(draw: Callable) -> tuple[torch.Tensor, list[list[int]]]:
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    cuts = [sorted(draw(st.sets(st.integers(1, max(1, size - 1)), max_size=2)) - {size}) for size in shape]
    return random_bits(shape, draw(st.sampled_from(DTYPES))), cuts


@settings(deadline=None, max_examples=8)
@given(tensors=st.lists(cut_tensors(), min_size=1, max_size=4), ranks=st.integers(1, 3))
def test_pytorch_loads_what_is_stored_in_a_skeleton(
    tensors: list, ranks: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("skeleton")
    values = {f"decoder.{index}.weight": value for index, (value, _) in enumerate(tensors)}
    files: list[list[Shard]] = [[] for _ in range(ranks)]
    for (key, value), (_, cuts) in zip(values.items(), tensors, strict=True):
        for shard in grid(key, value, cuts):
            random.choice(files).append(shard)
    write(folder, files, values, objects={"a._extra_state/shard_0_1": None})
    loaded = {key: torch.zeros_like(value) for key, value in values.items()}
    dcp.load(loaded, checkpoint_id=folder, no_dist=True)
    assert same_state(loaded, values)
    assert same_state(read(folder), values)


def test_reads_what_pytorch_saves(tmp_path: Path) -> None:
    values = {f"layer.{index}": random_bits((3, 5), dtype) for index, dtype in enumerate(DTYPES)}
    dcp.save({**values, "step": 7}, checkpoint_id=tmp_path, no_dist=True)
    assert same_state(read(tmp_path), values)
    assert DistCheckpoint(tmp_path).objects == {"step"}


@pytest.fixture
def values() -> dict[str, torch.Tensor]:
    return {"stacked": random_bits((3, 6, 5), torch.bfloat16), "plain": random_bits((7,), torch.float32)}


@pytest.fixture
def folder(tmp_path: Path, values: dict[str, torch.Tensor]) -> Path:
    """A checkpoint of two ranks as Megatron-LM lays it out: stacked layers, one cut in two by its rows."""
    stacked, plain = grid("stacked", values["stacked"], [[1, 2], [3], []]), grid("plain", values["plain"], [[3]])
    halves = [[*stacked[:2], plain[0]], [*stacked[2:], plain[1]]]
    write(
        tmp_path / "iter_0000007",
        halves,
        values,
        objects={f"_extra_state/shard_{layer}_3": None for layer in range(3)},
        common={"args": argparse.Namespace(num_layers=3, params_dtype=torch.bfloat16), "iteration": 7},
    )
    return tmp_path / "iter_0000007"


@pytest.mark.parametrize(
    "release",
    [release if release == INSTALLED else pytest.param(release, marks=pytest.mark.slow) for release in RELEASES],
)
def test_megatron_loads_what_is_stored_in_a_skeleton(
    release: str, folder: Path, values: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    loaded = tmp_path / "loaded.pt"
    command = [sys.executable, str(LOADER), str(folder), str(loaded)]
    done = subprocess.run(command, env=environment(release), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    found = torch.load(loaded, weights_only=False)
    assert same_state({key: found.pop(key) for key in values}, values)
    assert found.pop("args") == argparse.Namespace(num_layers=3, params_dtype=torch.bfloat16)
    assert found == {"iteration": 7, **{f"{layer}.object": None for layer in range(3)}}


def test_the_common_state_of_both_forms(folder: Path) -> None:
    args = argparse.Namespace(num_layers=5)
    assert DistCheckpoint(folder).common()["args"].num_layers == 3
    other = folder.with_name("other")
    other.mkdir()
    torch_dist.create(other, [[]], objects={"common_state/shard_0_1": {"args": args, "iteration": 2}}, common={})
    (other / "common.pt").unlink()
    common = DistCheckpoint(other).common()
    assert common["args"].num_layers == 5 and common["iteration"] == 2
    (folder / "common.pt").unlink()
    with pytest.raises(CheckpointError, match="neither common.pt nor the entry common_state/shard_0_1"):
        DistCheckpoint(folder).common()


@pytest.mark.parametrize("name", payloads(Path()))
@pytest.mark.parametrize("where", [".metadata", "common.pt", "entry"])
def test_code_is_refused_and_does_not_run(name: str, where: str, folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    value, used = payloads(trace)[name]
    file = folder / where
    if where == ".metadata":
        metadata = pickle.loads(file.read_bytes())
        file.write_bytes(pickle.dumps(dataclasses.replace(metadata, planner_data=value)))
    elif where == "common.pt":
        torch.save({"args": argparse.Namespace(num_layers=3), "more": value}, file)
    else:
        (folder / "common.pt").unlink()
        file = folder / "__0_0.distcp"
        append(folder, "common_state/shard_0_1", [{"args": value}])
    with pytest.raises(CheckpointError) as caught:
        DistCheckpoint(folder).common()
    assert str(file) in str(caught.value) and used in str(caught.value)
    assert not trace.exists()


def change(folder: Path, edit: Callable[[Any], None]) -> None:
    file = folder / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    edit(metadata)
    file.write_bytes(pickle.dumps(metadata))


def append(folder: Path, key: str, value: Any) -> None:
    """Add an entry, as 0.19.2 does for its common state."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    with (folder / "__0_0.distcp").open("ab") as stream:
        start = stream.tell()
        torch.save(value, stream)
        info = _StorageInfo("__0_0.distcp", start, stream.tell() - start)

    def add(metadata: Any) -> None:
        metadata.state_dict_metadata[key] = BytesStorageMetadata()
        metadata.storage_data[MetadataIndex(key)] = info

    change(folder, add)


def place(**changes: Any) -> Callable[[Any], None]:
    """An edit of where the second half of tensor `plain` is said to be."""

    def edit(metadata: Any) -> None:
        index = MetadataIndex("plain", (3,))
        metadata.storage_data[index] = dataclasses.replace(metadata.storage_data[index], **changes)

    return edit


def entry(name: str, value: Any) -> Callable[[Any], None]:
    return lambda metadata: setattr(metadata.state_dict_metadata["plain"], name, value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (place(offset=10**9), r"__1_0\.distcp: \d+ bytes are expected at byte 1000000000"),
        (place(length=10**9), r"__1_0\.distcp: 1000000000 bytes are expected"),
        (place(length=100), r"__1_0\.distcp is no zip archive"),
        (place(offset=5), r"__1_0\.distcp has no record data\.pkl: it is damaged"),
        (place(offset=-4), "does not say in which file"),
        (place(offset="0"), "does not say in which file"),
        (place(relative_path="../../etc/passwd"), "does not say in which file"),
        (place(relative_path="__7_0.distcp"), r"plain: .*__7_0\.distcp cannot be read \(No such file"),
        (place(transform_descriptors=["zstd"]), r"plain is transformed \(\['zstd'\]\)"),
        (lambda metadata: metadata.storage_data.pop(MetadataIndex("plain", (3,))), r"plain at \(3,\)"),
        (entry("size", torch.Size((6,))), r"the chunk \(4,\) at \(3,\) of plain is not inside of \(6,\)"),
        (lambda metadata: setattr(metadata.state_dict_metadata["plain"].properties, "dtype", torch.float16), "plain"),
        (lambda metadata: setattr(metadata.state_dict_metadata["plain"].chunks[1], "sizes", (3,)), "plain at"),
        (entry("chunks", 5), "not the metadata of a torch_dist checkpoint"),
        (lambda metadata: setattr(metadata, "storage_data", None), "not the metadata of a torch_dist checkpoint"),
    ],
)
def test_metadata_that_does_not_fit_the_files(edit: Callable[[Any], None], message: str, folder: Path) -> None:
    change(folder, edit)
    with pytest.raises(CheckpointError, match=message) as caught:
        DistCheckpoint(folder).chunks("plain")
    assert str(folder) in str(caught.value)


def test_truncated_files(folder: Path) -> None:
    file = folder / "__1_0.distcp"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"plain: .*__1_0\.distcp.* is it truncated\?"):
        DistCheckpoint(folder).chunks("plain")
    metadata = folder / ".metadata"
    metadata.write_bytes(metadata.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"\.metadata: its pickle cannot be read"):
        DistCheckpoint(folder)
    metadata.unlink()
    with pytest.raises(CheckpointError, match="no finished torch_dist checkpoint"):
        DistCheckpoint(folder)


def test_what_is_not_there_is_named(folder: Path) -> None:
    checkpoint = DistCheckpoint(folder)
    with pytest.raises(CheckpointError, match="has no tensor decoder.weight"):
        checkpoint.chunks("decoder.weight")
    with pytest.raises(CheckpointError, match="has no object stacked"):
        checkpoint.object("stacked")


SHARD = Shard("a", (4, 3), (0, 0), (2, 3), torch.float32)


@pytest.mark.parametrize(
    "second",
    [
        SHARD,
        dataclasses.replace(SHARD, offsets=(3, 0)),
        dataclasses.replace(SHARD, offsets=(2, 0), shape=(1, 3)),
        dataclasses.replace(SHARD, offsets=(2, 0), dtype=torch.float16),
        dataclasses.replace(SHARD, offsets=(2, 0), global_shape=(5, 3)),
        dataclasses.replace(SHARD, offsets=(2,), shape=(6,)),
    ],
    ids=["twice", "outside", "hole", "dtype", "shape", "rank"],
)
def test_shards_that_do_not_make_up_their_tensor(second: Shard, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"The shards of a do not make up one tensor of shape \(4, 3\)"):
        torch_dist.create(tmp_path, [[SHARD], [second]], objects={}, common={})
    assert not list(tmp_path.iterdir())


def test_an_existing_checkpoint_is_left_as_it_is(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp exists already"):
        torch_dist.create(folder, [[]], objects={}, common={})
    assert all((folder / file.name).read_bytes() == file.read_bytes() for file in copy.iterdir())
