"""Which files are meant, what their names tell, and that damage is noticed."""

import gzip
import os
import subprocess
import sys

import pyarrow
import pytest

from ascend_patch.data.errors import DataError
from ascend_patch.data.sources import Format, find_sources


@pytest.mark.parametrize(
    ("name", "form", "compression"),
    [
        ("a.jsonl", Format.JSONL, ""),
        ("a.JSONL.GZ", Format.JSONL, ".gz"),
        ("a.b.ndjson.zst", Format.JSONL, ".zst"),
        ("a.json", Format.JSON, ""),
        ("a.parquet", Format.PARQUET, ""),
        ("a.txt.zst", Format.TXT, ".zst"),
    ],
)
def test_names_tell_the_format(tmp_path, name, form, compression):
    path = tmp_path / name
    path.write_bytes(b"12345")
    (source,) = find_sources([str(path)])
    assert (source.format, source.compression, source.size, source.name) == (form, compression, 5, str(path))


def test_the_option_tells_it_instead(tmp_path):
    (tmp_path / "part-0001").touch()
    (source,) = find_sources([str(tmp_path / "part-0001")], Format.TXT)
    assert source.format is Format.TXT


def test_patterns_and_order(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "deep/er/c.jsonl", "a.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.jsonl").mkdir()
    names = [f"{tmp_path}/deep/**/*.jsonl", f"{tmp_path}/*.jsonl", "-"]
    found = [source.name.removeprefix(f"{tmp_path}/") for source in find_sources(names)]
    assert found == ["deep/er/c.jsonl", "a.jsonl", "b.jsonl", "standard input"]


def test_a_name_that_looks_like_a_pattern(tmp_path):
    path = tmp_path / "a[1].jsonl"
    path.touch()
    assert [source.path for source in find_sources([str(path)])] == [path]


def test_what_cannot_be_meant(tmp_path):
    (tmp_path / "a.csv").touch()
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "a.jsonl")
    for names, message in [
        (["absent.jsonl"], "--input absent.jsonl cannot be read: No such file"),
        (["*.absent"], r"--input \*.absent: no file matches this pattern"),
        ([str(tmp_path)], f"is a folder. Name its files, for example '{tmp_path}/\\*.jsonl'"),
        ([f"{tmp_path}/a.csv"], r"its name does not tell the format. Known are .jsonl.* with --input-format"),
        ([f"{tmp_path}/a.jsonl", f"{tmp_path}/link.jsonl"], "link.jsonl is named twice by --input"),
        (["-", "-"], "standard input is named twice"),
    ]:
        with pytest.raises(DataError, match=message):
            find_sources(names)


def test_a_pipe_has_no_size(tmp_path):
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    assert find_sources([str(pipe)])[0].size is None


def zstd(data: bytes) -> bytes:
    return pyarrow.Codec("zstd").compress(data, asbytes=True)


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".zst", zstd)])
def test_compressed_files(tmp_path, suffix, compress):
    text = os.urandom(30_000)
    path = tmp_path / f"a.txt{suffix}"

    def read() -> bytes:
        with find_sources([str(path)])[0].open() as (content, _):
            return b"".join(iter(lambda: content.read(1000), b""))

    path.write_bytes(compress(text[:10_000]) + compress(text[10_000:]))  # of several members, as parallel tools write
    assert read() == text
    for damaged in (compress(text)[:-500], b"no such format " * 10):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"a.txt{suffix} is damaged or no {suffix} file"):
            read()


def test_standard_input():
    script = (
        "from ascend_patch.data.sources import find_sources\n"
        "with find_sources(['-'])[0].open() as (content, _): print(content.read(100))"
    )
    ended = subprocess.run([sys.executable, "-c", script], input=b"text", capture_output=True, check=True)
    assert ended.stdout == b"b'text'\n"


def test_a_file_that_cannot_be_opened(tmp_path):
    path = tmp_path / "a.jsonl"
    path.touch()
    (source,) = find_sources([str(path)])
    path.unlink()
    with pytest.raises(DataError, match="a.jsonl cannot be read: No such file"), source.open():
        pass
