"""Packages by checksum, and the cutting of long texts. Nothing here touches a package index."""

import hashlib
import io
import json
import random
import tarfile
import zipfile

import pytest

from tools.preprocess_data import DataError, Dataset
from tools.train import corpus
from tools.train.packages import Package, fetch, read_members


def package_of(path, **changes):
    return Package("some-package", "1.0", hashlib.sha256(path.read_bytes()).hexdigest(), **changes)


def test_a_cached_archive_is_known_by_its_checksum(tmp_path, monkeypatch):
    monkeypatch.setattr("tools.train.packages.subprocess.run", None)  # a download would fail
    (tmp_path / "other.whl").write_bytes(b"other")
    archive = tmp_path / "any-name.whl"
    archive.write_bytes(b"content")
    assert fetch(package_of(archive), tmp_path) == archive


def test_a_failed_download_says_so_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(DataError, match=r"(?s)some-package 1\.0 could not be downloaded.*No matching distribution"):
        fetch(Package("some-package", "1.0", "0" * 64), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def make_wheel(folder) -> None:
    with zipfile.ZipFile(folder / "some_package-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(
            "some_package-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-package\nVersion: 1.0\n"
        )
        wheel.writestr(
            "some_package-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("some_package-1.0.dist-info/RECORD", "")
        wheel.writestr("some_package/data/words.txt", "words")


@pytest.mark.parametrize("right", [True, False])
def test_a_download_counts_only_with_the_right_checksum(tmp_path, monkeypatch, right):
    index = tmp_path / "index"
    index.mkdir()
    make_wheel(index)
    (wheel,) = index.iterdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    cache = tmp_path / "cache"
    if right:
        archive = fetch(package_of(wheel), cache)
        assert archive.parent == cache
        assert read_members(archive, "words.txt") == {"some_package/data/words.txt": b"words"}
    else:
        with pytest.raises(DataError, match="(?s)could not be downloaded.*DO NOT MATCH THE HASHES"):
            fetch(Package("some-package", "1.0", "0" * 64), cache)
        assert list(cache.iterdir()) == []


def test_members_of_a_source_archive(tmp_path):
    archive = tmp_path / "some-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as source:
        for name in ("b_gut.txt", "a_gut.txt", "c.txt"):
            info = tarfile.TarInfo(f"some-1.0/{name}")
            info.size = len(name)
            source.addfile(info, io.BytesIO(name.encode()))
    assert list(read_members(archive, "_gut.txt").items()) == [
        ("some-1.0/a_gut.txt", b"a_gut.txt"),
        ("some-1.0/b_gut.txt", b"b_gut.txt"),
    ]
    with pytest.raises(DataError, match=r"contains no file named \*\.md"):
        read_members(archive, ".md")


def test_a_long_text_is_cut_at_line_ends():
    text = "first line\nsecond line\n\nthird line\n"
    assert list(corpus.split_document(text, 24)) == ["first line\nsecond line", "third line"]
    assert list(corpus.split_document(text, 1000)) == [text.strip()]
    assert list(corpus.split_document(" \n\n", 5)) == []


def test_a_long_line_is_cut_at_sentence_ends():
    assert list(corpus.split_document("One is. Two is. Three is.", 16)) == ["One is. Two is.", "Three is."]


def test_cutting_loses_no_word():
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    words = [f"w{i}{draw.choice(['', '.', ','])}" for i in range(2000)]
    text = "".join(word + draw.choice([" ", " ", "\n", "\r\n", "\n\n"]) for word in words)
    parts = list(corpus.split_document(text, 300))
    assert " ".join(parts).split() == words
    assert max(map(len, parts)) <= 300


def test_own_text_becomes_a_dataset_once(tmp_path, tokenizer_folder, monkeypatch):
    monkeypatch.setattr(corpus, "prepare_tokenizer", lambda data: tokenizer_folder)
    source = tmp_path / "my.jsonl"
    source.write_text('{"text": "To be"}\n')
    first = corpus.prepare_dataset(tmp_path / "data", source)
    assert first == Dataset(first.prefix, 1, first.tokens)
    assert first.prefix.name.startswith("my-")
    monkeypatch.setattr(corpus, "write_dataset", None)  # a second conversion would fail
    assert corpus.prepare_dataset(tmp_path / "data", source) == first
    assert json.loads(first.prefix.with_name(first.prefix.name + ".json").read_text())["documents"] == 1


def test_changed_text_is_another_dataset(tmp_path, tokenizer_folder, monkeypatch):
    monkeypatch.setattr(corpus, "prepare_tokenizer", lambda data: tokenizer_folder)
    source = tmp_path / "my.jsonl"
    source.write_text('{"text": "To be"}\n')
    first = corpus.prepare_dataset(tmp_path, source)
    source.write_text('{"text": "Not to be"}\n')
    assert corpus.prepare_dataset(tmp_path, source).prefix != first.prefix


def test_own_text_that_is_not_there(tmp_path, tokenizer_folder, monkeypatch):
    monkeypatch.setattr(corpus, "prepare_tokenizer", lambda data: tokenizer_folder)
    with pytest.raises(DataError, match="DATA=.*absent.jsonl cannot be read"):
        corpus.prepare_dataset(tmp_path, tmp_path / "absent.jsonl")
