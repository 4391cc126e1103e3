"""The table of memory by number of ranks, from figures made up here."""

from benchmarks.context_parallel import table


def test_what_is_left_of_one_rank():
    text = table("p2p", {1: {1024: 2**22, 2048: 2**23}, 4: {1024: 2**20, 2048: 3 * 2**20}})
    head, ranks, *rows = text.splitlines()
    assert head.startswith("p2p, simulated device")
    assert ranks.split() == ["tokens", "CP1", "CP4"]
    assert [row.split() for row in rows] == [
        ["1,024", "4.00", "1.000x", "1.00", "0.250x"],
        ["2,048", "8.00", "1.000x", "3.00", "0.375x"],
    ]
