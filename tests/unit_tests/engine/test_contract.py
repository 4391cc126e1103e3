"""Recorded releases: written, read, found, refused."""

import pytest

from ascend_patch.engine import contract as contract_module
from ascend_patch.engine.contract import Contract, Release, default_directory
from ascend_patch.engine.errors import ContractError
from ascend_patch.engine.fingerprint import Source, SourceTree

FILES = {
    "up.a": "def f(x): return x\nNAME = 1\nclass Base:\n    def m(self): pass\n",
    "up.b": "from up.a import Base\nclass Child(Base): pass\n",
}
SYMBOLS = {"up.a:f", "up.a:NAME", "up.b:Child.m", "up.a:gone", "up.none:f"}


def tree(**changed: str) -> SourceTree:
    files = FILES | {name.replace("_", "."): text for name, text in changed.items()}
    return SourceTree(lambda module: Source(files[module].encode(), False) if module in files else None)


def test_what_was_written_is_read_back():
    release = Release.record("1.2.3", tree(), SYMBOLS)
    again = Release.from_toml(release.to_toml())
    assert again == release
    assert again.symbols["up.a:gone"] is None and again.symbols["up.none:f"] is None
    assert again.symbols["up.b:Child.m"].modules == ("up.b", "up.a")
    assert again.symbols["up.a:NAME"].kind == "name"
    assert set(again.files) == {"up.a", "up.b"}


def test_text_does_not_depend_on_the_order_of_symbols():
    texts = {Release.record("1", tree(), order).to_toml() for order in (sorted(SYMBOLS), sorted(SYMBOLS)[::-1])}
    assert len(texts) == 1


def test_unchanged_looks_at_every_file_involved():
    release = Release.record("1", tree(), SYMBOLS)
    assert release.unchanged("up.b:Child.m", tree())
    assert not release.unchanged("up.b:Child.m", tree(up_a=FILES["up.a"] + "# x"))
    assert release.unchanged("up.a:f", tree(up_b="")), "up.b has nothing to do with it"
    assert not release.unchanged("up.a:gone", tree())


def test_unchanged_parses_nothing():
    release = Release.record("1", tree(), {"up.a:f"})
    same = tree()
    same._tree = None  # would be called to parse
    assert release.unchanged("up.a:f", same)


def test_directory(tmp_path):
    for version in ("0.9.0", "0.10.0"):
        (tmp_path / f"{version}.toml").write_text(Release.record(version, tree(), SYMBOLS).to_toml())
    contract = Contract.load(tmp_path)
    assert contract.versions == ("0.9.0", "0.10.0")
    assert contract.release("0.10.0") is contract.release("0.10.0")
    with pytest.raises(KeyError):
        contract.release("0.11.0")


@pytest.mark.parametrize(
    "text",
    ["not toml at all [", "schema = 99", "schema = 1", 'schema = 1\nmegatron = "1"\nabsent = []']
    + ['schema = 1\nmegatron = "1"\nabsent = []\nfiles = {}\nsymbols."a:b" = {kind = "name"}'],
)
def test_unreadable_file_is_named(tmp_path, text):
    (tmp_path / "1.0.toml").write_text(text)
    with pytest.raises(ContractError, match=r"1\.0\.toml cannot be used.*ascend-patch contract --write"):
        Contract.load(tmp_path).release("1.0")


def test_empty_directory(tmp_path):
    with pytest.raises(ContractError, match="holds no fingerprints"):
        Contract.load(tmp_path)


def test_default_directory_inside_the_package_wins(tmp_path, monkeypatch):
    monkeypatch.setattr(contract_module, "__file__", str(tmp_path / "pkg" / "engine" / "contract.py"))
    with pytest.raises(ContractError, match="installation is incomplete"):
        default_directory()
    (tmp_path / "patches").mkdir()
    assert default_directory() == tmp_path / "patches"
    (tmp_path / "pkg" / "patches").mkdir(parents=True)
    assert default_directory() == tmp_path / "pkg" / "patches"
