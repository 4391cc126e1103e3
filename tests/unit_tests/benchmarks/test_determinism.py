"""The line of the benchmark of deterministic computing."""

from benchmarks.determinism import line


def test_the_ratio_is_taken_round_by_round() -> None:
    """The machine was twice as slow in the second round, for both sides."""
    assert line("bf16", [1.0, 2.0], [1.5, 3.0]) == (
        "bf16: 1.50 s a step without, 2.25 s with deterministic computing; "
        "with/without = 1.50 (1.50 to 1.50 over 2 rounds)"
    )
