"""Logs for tests: real ones, and ones printed by a small model of upstream's accounting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LOGS = Path(__file__).with_name("logs")


@dataclass
class Upstream:
    """What upstream's ``training_log`` keeps between iterations, and prints.

    Args:
        microseconds: 0.16 or later: microseconds in the time, and the first iteration of a process is printed without
            resetting the sums.
        shows_zero: 0.17 or later: a mean of 0 is printed too, which is that of skipped iterations only.
    """

    interval: int = 1
    microseconds: bool = True
    shows_zero: bool = True
    batch: int = 8
    last: int = 1000
    clock: float = 0.0

    def process(
        self, losses: Mapping[int, float], skipped: frozenset[int] = frozenset(), seconds: float = 0.25
    ) -> list[str]:
        """The lines of one process that trained the iterations ``losses``, from the first on."""
        lines, total, advanced, count_skipped, elapsed, timed = [], None, 0, 0, 0.0, 0
        first = min(losses, default=0)
        for iteration, loss in sorted(losses.items()):
            elapsed, timed = elapsed + seconds * (3 if iteration == first else 1), timed + 1
            self.clock += 1.0
            if iteration in skipped:
                count_skipped += 1
            else:
                total, advanced = (total or 0.0) + loss, advanced + 1
            keep = self.microseconds and iteration == first
            if iteration % self.interval and not keep:
                continue
            mean = None if total is None else total / max(1, advanced)
            lines.append(self._line(iteration, mean, elapsed / timed, count_skipped))
            if not keep:
                total, advanced, count_skipped, elapsed, timed = total and 0.0, 0, 0, 0.0, 0
        return lines

    def _line(self, iteration: int, mean: float | None, seconds: float, skipped: int) -> str:
        fraction = ".279882" if self.microseconds else ""
        shown = mean is not None and (mean >= 0.0 if self.shows_zero else mean > 0.0)
        minutes, seconds_of_minute = divmod(int(self.clock), 60)
        return (
            f" [2026-01-02 10:{minutes:02d}:{seconds_of_minute:02d}{fraction}]"
            f" iteration {iteration:8d}/{self.last:8d} | consumed samples: {iteration * self.batch:12d} |"
            f" elapsed time per iteration (ms): {seconds * 1000:.1f} | learning rate: {1e-3:.6E} |"
            f" global batch size: {self.batch:5d} |"
            + (f" lm loss: {mean:.6E} |" if shown else "")
            + f" loss scale: 1.0 | grad norm: {(mean or 1.0) / 7:.3f} |"
            f" number of skipped iterations: {skipped:3d} | number of nan iterations: {0:3d} |"
        )


def header(loaded: int = 0, **arguments: object) -> list[str]:
    """What a process prints before it trains; ``loaded``: the iteration of its checkpoint, 0 without one."""
    lines = ["------------------------ arguments ------------------------"]
    lines += [f"  {name} {'.' * (48 - len(name))} {value}" for name, value in arguments.items()]
    lines += ["-------------------- end of arguments ---------------------"]
    if loaded:
        lines.append(f"  successfully loaded checkpoint from ck [ t 1/1, p 1/1 ] at iteration {loaded}")
    return [*lines, "[before the start of training step] datetime: 2026-01-02 10:00:00.000000 "]


def write(folder: Path, name: str, lines: Sequence[str]) -> Path:
    """The lines as a file."""
    path = folder / f"{name}.log"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path
