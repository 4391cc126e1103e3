"""The table of a step's work, from counters made up here."""

from benchmarks.npu_work import REST, Work, table


def a_step(*launches, syncs=0):
    rows = [
        {"scope": scope, "name": "x", "count": count, "bytes_read": moved, "bytes_written": 0}
        for scope, count, moved in launches
    ]
    return {
        "launches": rows,
        "syncs": [{"scope": "router", "name": "aten::item", "count": syncs}] if syncs else [],
        "uploads": [{"scope": "", "name": "aten::_to_copy", "count": 2, "bytes": 8}],
        "collectives": [{"scope": "", "name": "all_reduce", "group": "dp", "count": 3, "bytes": 2**20}],
        "peak_memory_bytes": 2**21,
    }


STOCK = Work.of(a_step(("router", 90, 2**20), ("", 10, 2**20), syncs=9))


def test_parts_are_scopes():
    assert STOCK.launches == {"router": 90, REST: 10}
    assert sum(STOCK.bytes.values()) == 2**21
    assert STOCK.syncs == {"aten::item in router": 9}
    assert (STOCK.uploads, STOCK.collectives, STOCK.collective_bytes) == (2, 3, 2**20)


def test_limits_met():
    text = table("tiny", "bf16", STOCK, Work.of(a_step(("router", 30, 2**20), syncs=4)))
    assert text.count(": met") == 3 and "MISSED" not in text
    assert "launches: 0.300 of stock" in text


def test_limits_missed():
    text = table("tiny", "bf16", STOCK, Work.of(a_step(("router", 40, 2**20), ("new", 1, 2**20), syncs=5)))
    assert text.count("MISSED") == 3
    assert "5 x aten::item in router" in text


def test_a_part_that_only_one_side_has_is_shown():
    text = table("tiny", "bf16", STOCK, Work.of(a_step(("new", 7, 2**20))))
    assert any(line.split()[:3] == ["new", "0", "7"] for line in text.splitlines())
