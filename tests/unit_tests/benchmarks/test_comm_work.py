"""The table of a step's collectives, from counters made up here."""

from benchmarks.comm_work import Work, table


def work(*rows):
    names = ("scope", "name", "group", "count", "bytes")
    return Work.of(dict(zip(names, row, strict=True)) for row in rows)


EXCHANGE = ("layer", "all_to_all_single", "EXPERT_MODEL_PARALLEL_GROUP", 8, 8 * 2**10)
NORM = ("", "all_reduce", "MODEL_PARALLEL_GROUP", 1, 4)
OURS = work(EXCHANGE, NORM)


def cells(text, title):
    (line,) = [line for line in text.splitlines() if line.startswith(f"  {title} ")]
    return line.removeprefix(f"  {title} ").split()


def test_layers_are_shown_for_one():
    text = table("EP8", OURS, OURS, layers=2)
    assert cells(text, "each layer: all_to_all_single, expert_model_parallel") == ["4", "4.0", "4", "4.0"]
    assert cells(text, "the rest: all_reduce, model_parallel") == ["1", "0.0", "1", "0.0"]
    assert cells(text, "the whole step") == ["9", "8.0", "9", "8.0"]
    assert text.splitlines()[-1].endswith("for the same flags: met")


def test_more_bytes_than_upstream():
    text = table("EP8", OURS, work(EXCHANGE, EXCHANGE), layers=1)
    assert cells(text, "each layer: all_to_all_single, expert_model_parallel") == ["8", "8.0", "16", "16.0"]
    assert cells(text, "the rest: all_reduce, model_parallel") == ["1", "0.0", "0", "0.0"]
    assert text.splitlines()[-1].endswith("MISSED")


def test_a_layout_without_stock():
    text = table("CP4", None, OURS, layers=2)
    assert "stock: calls" not in text and "met" not in text
    assert cells(text, "the whole step") == ["9", "8.0"]
