"""The .idx file of Megatron's indexed dataset, written from files, without holding it in memory.

All numbers are little-endian:

====================  =========================================================================================
9 bytes               ``MMIDIDX`` and two zeros
uint64, uint8         version 1; the code of the dtype of the ids
uint64, uint64        sequences S; documents D, plus 1
int32 [S]             ids of each sequence
int64 [S]             byte of the .bin file at which each begins
int64 [D + 1]         number of the first sequence of each document; the last is S
====================  =========================================================================================
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
#: What the table above has before the arrays.
HEADER = struct.Struct("<9sQBQQ")
DTYPE_CODES = {np.dtype(np.uint16): 8, np.dtype(np.int32): 4}
BLOCK = 1 << 20


def write_index(path: Path, dtype: np.dtype, lengths: Path, documents: Path) -> None:
    """Write ``path``.

    Args:
        dtype: of the ids, uint16 or int32.
        lengths: a file of int32, the ids of each sequence.
        documents: a file of int32, the sequences of each document.
    """
    sequences, count = lengths.stat().st_size // 4, documents.stat().st_size // 4
    with path.open("wb") as file:
        file.write(HEADER.pack(MAGIC, VERSION, DTYPE_CODES[dtype], sequences, count + 1))
        for block in _blocks(lengths):
            file.write(block.data)
        begin = 0
        for block in _blocks(lengths):
            ends = begin + np.cumsum(block, dtype=np.int64) * dtype.itemsize
            file.write((ends - block * np.int64(dtype.itemsize)).data)
            begin = int(ends[-1])
        file.write(np.zeros(1, np.int64).data)
        begin = 0
        for block in _blocks(documents):
            ends = begin + np.cumsum(block, dtype=np.int64)
            file.write(ends.data)
            begin = int(ends[-1])


def _blocks(path: Path) -> Iterator[np.ndarray]:
    with path.open("rb") as file:
        while (block := np.fromfile(file, np.int32, BLOCK)).size:
            yield block
