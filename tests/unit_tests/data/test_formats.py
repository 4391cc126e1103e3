"""The same records from every format, however the file is cut; what is wrong is named by its line."""

import gzip
import json
import random

import pyarrow
import pytest
from pyarrow import parquet

from ascend_patch.data import formats
from ascend_patch.data.errors import DataError
from ascend_patch.data.formats import read_chunks, read_records
from ascend_patch.data.lines import TxtSplit
from ascend_patch.data.sources import find_sources


def random_records() -> list[dict]:
    seed = random.randrange(2**32)
    draw = random.Random(seed)
    print(f"seed {seed}")
    letters = list('ab\n\r\t"\\é二🙂 {}[],\u2028\x85')
    return [
        {"text": "".join(draw.choices(letters, k=draw.choice([0, 1, 30, 900]))), "n": draw.random(), "more": [index]}
        for index in range(60)
    ]


def write_jsonl(path, records):
    path.write_text(
        "\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8", newline=""
    )


def write_crlf(path, records):
    lines = [json.dumps(record) + "\r\n\r\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8-sig", newline="")


def write_array(path, records):
    path.write_text(json.dumps(records, indent=1), encoding="utf-8-sig")


def write_objects(path, records):
    path.write_text("\n".join(json.dumps(record, indent=1) for record in records), encoding="utf-8")


def write_parquet(path, records):
    parquet.write_table(pyarrow.Table.from_pylist(records), path, row_group_size=7)


WRITERS = {
    "lines.jsonl": write_jsonl,
    "crlf.jsonl": write_crlf,
    "array.json": write_array,
    "objects.json": write_objects,
    "lines.json": write_jsonl,
    "rows.parquet": write_parquet,
}


def compress(path, suffix):
    data = path.read_bytes()
    packed = path.with_name(path.name + suffix)
    packed.write_bytes(gzip.compress(data) if suffix == ".gz" else pyarrow.Codec("zstd").compress(data, asbytes=True))
    return packed


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_records(tmp_path, monkeypatch, name):
    records = random_records()
    plain = tmp_path / name
    WRITERS[name](plain, records)
    for path in (plain, compress(plain, ".gz"), compress(plain, ".zst")):
        (source,) = find_sources([str(path)])
        for size in (50, 3000, 1 << 20):
            monkeypatch.setattr(formats, "CHUNK_BYTES", size)
            assert [record for _, record in read_records([source])] == records
            chunks = list(read_chunks(source))
            assert chunks == list(read_chunks(source))  # a run that goes on relies on it
            done = [chunk.done for chunk in chunks]
            assert done == sorted(done) and done[-1] == path.stat().st_size
            assert size > 50 or len(chunks) > 20


def places(path, **kwargs) -> list[tuple[str, object]]:
    (source,) = find_sources([str(path)])
    return [
        (
            chunk.place(number).removeprefix(f"{path.parent}/"),
            str(item) if isinstance(item, DataError) else item["text"],
        )
        for chunk in read_chunks(source, **kwargs)
        for number, item in chunk.items()
    ]


@pytest.mark.parametrize("size", [10, 1 << 20])
def test_bad_lines_are_named_and_the_others_are_read(tmp_path, monkeypatch, size):
    monkeypatch.setattr(formats, "CHUNK_BYTES", size)
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"text": "one"}\n\n{not\n[1]\n"s"\nnull\n1.5\ntrue\n{"text": "\xe9"}\n'
        + b"[" * 50_000
        + b'\n{"n": '
        + b"1" * 5000
        + b'}\n{"text": "end"}'
    )
    found = places(path)
    assert found[0] == ("a.jsonl, line 1", "one") and found[-1] == ("a.jsonl, line 12", "end")
    named = dict(found)
    assert named["a.jsonl, line 3"].startswith("not JSON (Expecting property name")
    assert named["a.jsonl, line 4"].startswith("an array, but a record is a JSON object. If the file is one JSON array")
    for line, kind in ((5, "a string"), (6, "null"), (7, "a number"), (8, "a boolean")):
        assert named[f"a.jsonl, line {line}"] == f"{kind}, but a record is a JSON object."
    assert named["a.jsonl, line 9"] == "not UTF-8 (invalid continuation byte at byte 10). Convert it first."
    assert "recursion" in named["a.jsonl, line 10"]
    assert "4300 digits" in named["a.jsonl, line 11"]
    assert len(found) == 11


def test_reading_all_stops_at_a_bad_record(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{')
    with pytest.raises(DataError, match=r"a.jsonl, line 2: not JSON"):
        list(read_records(find_sources([str(path)])))


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        (TxtSplit.LINE, [(1, "= A ="), (2, "one"), (4, " two"), (5, "= B =")]),
        (TxtSplit.BLANK_LINE, [(1, "= A =\r\none"), (4, " two\n= B =")]),
        (TxtSplit.TITLE, [(1, "= A =\r\none\n\n two"), (5, "= B =")]),
        (TxtSplit.FILE, [(1, "= A =\r\none\n\n two\n= B =")]),
    ],
)
@pytest.mark.parametrize("size", [8, 1 << 20])
def test_documents_of_text_files(tmp_path, monkeypatch, split, expected, size):
    monkeypatch.setattr(formats, "CHUNK_BYTES", size)
    path = tmp_path / "a.txt"
    path.write_text("\ufeff= A =\r\none\n\n two\n= B =\n", encoding="utf-8", newline="")
    assert places(path, split=split) == [(f"a.txt, line {line}", text) for line, text in expected]


def test_text_that_is_not_utf8(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\n\xff\n\nthree")
    for split in (TxtSplit.LINE, TxtSplit.BLANK_LINE):
        assert any("not UTF-8 (invalid start byte" in str(text) for _, text in places(path, split=split))


@pytest.mark.parametrize(("name", "split"), [("a.jsonl", "line"), ("a.txt", "line"), ("a.txt", "blank-line")])
def test_a_record_that_is_too_long(tmp_path, name, split):
    path = tmp_path / name
    good = '{"text": "x"}\n\n'
    path.write_text(good + "{" + " " * (3 << 20) + "}\n\n" + good)
    found = places(path, split=TxtSplit(split), longest=1 << 20)
    message = "longer than 1 MiB. Split it into documents, or raise --max-record-mib."
    assert [place for place, _ in found] == [f"{name}, line {line}" for line in (1, 3, 5)]
    assert found[1][1] == message


def test_what_is_no_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 and nothing else PAR1")
    with pytest.raises(DataError, match="a.parquet is damaged or no .parquet file"):
        places(path)


def test_rows_are_named(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["a", None, "c"]}), path)
    assert places(path) == [("a.parquet, row 1", "a"), ("a.parquet, row 2", None), ("a.parquet, row 3", "c")]
    parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), path)
    assert places(path) == []
