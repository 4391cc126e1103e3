"""Medians and spreads of measurements that were taken in rounds."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """The median of some measurements and how far they scatter.

    Attributes:
        median: of all of them.
        low, high: the quartiles; half of the measurements lie between the two.
        count: how many there were.
    """

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Sample":
        """Summarise ``values``, at least one."""
        if not values:
            raise ValueError("There is nothing to summarise: no measurement was taken.")
        low = high = values[0]
        if len(values) > 1:
            low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(statistics.median(values), low, high, len(values))

    @property
    def noise(self) -> float:
        """Half of the distance between the quartiles, as a fraction of the median."""
        return (self.high - self.low) / 2 / self.median if self.median else 0.0


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Sample:
    """Of two contestants, round by round: what slowed the machine down in a round slowed both.

    Raises:
        ValueError: the two were not measured in the same number of rounds.
    """
    if len(numerators) != len(denominators):
        raise ValueError(f"{len(numerators)} rounds cannot be compared with {len(denominators)}.")
    return Sample.of([a / b for a, b in zip(numerators, denominators, strict=True)])
