"""What the user sees while a training runs: one moving line in a terminal, a few plain lines elsewhere."""

import statistics
from collections import deque
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from ascend_patch.runs.megatron_log import Iteration, Validation

RECENT = 10  # iterations that count for the speed shown


class TrainingProgress:
    """A context manager that shows records as they come.

    Args:
        console: where to; what it shows depends on whether that is a terminal.
        tokens_per_iteration: global batch times sequence length.
    """

    def __init__(self, console: Console, tokens_per_iteration: int) -> None:
        self._console = console
        self._tokens = tokens_per_iteration
        self._seconds: deque[float] = deque(maxlen=RECENT)
        self._validation = ""
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=None, figures="imports, model, data")

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def notice(self, text: str) -> None:
        """Show a line above the moving one."""
        self._console.print(text, highlight=False, markup=False)

    def show(self, record: Iteration | Validation) -> None:
        """Show what one line of the log said."""
        if isinstance(record, Validation):
            self._validation = f" · validation {record.loss:.2f}"
            return
        self._seconds.append(record.seconds)
        figures = self._figures(record)
        self._bar.update(
            self._task,
            description=f"iteration {record.iteration}/{record.last}",
            completed=record.iteration,
            total=record.last,
            figures=figures,
        )
        every = max(1, record.last // 20)
        if not self._console.is_terminal and (record.iteration % every == 0 or record.iteration == record.last):
            self.notice(f"iteration {record.iteration}/{record.last} · {figures}")

    def _figures(self, record: Iteration) -> str:
        seconds = statistics.median(self._seconds)
        loss = "skipped" if record.loss is None else f"loss {record.loss:.3f}"
        speed = f"{self._tokens / seconds:,.0f} tokens/s" if seconds else "speed unknown"
        left = round((record.last - record.iteration) * seconds)
        return f"{loss}{self._validation} · {speed} · {left // 60}:{left % 60:02d} left"
