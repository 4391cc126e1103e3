"""The benchmark of conversions: the whole of it on a tiny model, and what its table says of made-up figures."""

import argparse
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from benchmarks import convert, weights
from benchmarks.statistics import Sample
from benchmarks.worker import WorkerError
from benchmarks.workers.random_weights import random_bfloat16

TINY = convert.MIXTRAL_8X7B | {
    "num_hidden_layers": 4,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
}


def options(**changes: object) -> argparse.Namespace:
    return argparse.Namespace(**{"rounds": 1, "workers": 2, "ckpt_format": "torch"} | changes)


def measured(copied: float, converted: float, peak: int) -> convert.Measured:
    ratio = Sample.of([copied / converted])
    return convert.Measured("there", 10**9, 10**9, Sample.of([copied]), Sample.of([converted]), ratio, peak)


def test_of_a_tiny_model(tmp_path: Path) -> None:
    found = convert.measure(TINY, options(), tmp_path)
    assert len(found) == 3
    assert all(min(way.read, way.written) > weights.size(TINY) for way in found), found
    assert all(0 < way.peak < 2**30 for way in found), found
    assert "memory, the most" in convert.table(found, TINY)
    (file_of_weights,) = tmp_path.glob("*/model*.safetensors")  # only what came back is left
    with safe_open(file_of_weights, "pt") as file:
        assert {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()} == {  # noqa: SIM118
            name: shape for shard in weights.shapes(TINY) for name, shape in shard.items()
        }


def test_a_conversion_that_fails_ends_it(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="--target-expert-parallel-size 4"):
        convert.measure(TINY | {"num_local_experts": 6}, options(), tmp_path)


def test_verdicts() -> None:
    good, slow, large = measured(6.0, 9.9, 2**30), measured(5.9, 10.0, 2**30), measured(6.0, 9.9, 2**31)
    text = convert.table([good], TINY)
    assert text.count(": met") == 2 and "MISSED" not in text
    assert "the least: 0.59, at least 0.6: MISSED" in convert.table([good, slow], TINY)
    assert "2048 MiB, at most 1 GiB + the experts of a layer (1024 MiB): MISSED" in convert.table([good, large], TINY)


def test_sizes_are_mixtrals() -> None:
    assert weights.experts_size(convert.MIXTRAL_8X7B) == 2_818_572_288
    assert weights.size(convert.MIXTRAL_8X7B | {"num_hidden_layers": 32}) == 93_405_585_408  # of v0.1's index


def test_random_numbers_are_numbers() -> None:
    numbers = random_bfloat16(64, 64)
    assert numbers.isfinite().all() and numbers.abs().max() < 2
    assert numbers.unique().numel() > 1000 and 0.4 < (numbers < 0).float().mean() < 0.6
    assert not torch.equal(numbers, random_bfloat16(64, 64))
