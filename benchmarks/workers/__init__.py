"""The programs that are measured, each behind a :class:`~benchmarks.gate.Gate`."""
