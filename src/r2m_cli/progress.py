"""How a run shows itself: a live bar on a terminal, a plain line now and then elsewhere, or nothing."""

import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.table import Column

# metric -> the short word that the line shows, in this order
SHOWN = {"reward": "reward", "reward_frozen": "frozen", "gold": "gold", "kl": "KL"}
PLAIN_SECONDS = 2.0  # without a terminal: at most one line in this time


class Progress(Protocol):
    """What a run's progress can do. Steps run from 1 to total_steps; 0 is the state before the first."""

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Step `step` is done and measured `values`."""

    def warn(self, message: str, word: str = "warning") -> None:
        """Show a warning (or a note) now."""

    def close(self) -> None:
        """Show what is still owed and leave the terminal as it was; may be called twice."""


def make_progress(total_steps: int, start_step: int = 0, quiet: bool = False) -> Progress:
    """The progress that fits stdout: `quiet` shows nothing, a terminal gets the bar, a pipe plain lines.

    `start_step` is the first step that will be shown; above 1 only in a resumed run.
    """
    if quiet:
        return _Quiet()
    console = Console(file=sys.stdout)
    if sys.stdout.isatty() and not console.is_dumb_terminal:
        return _Bar(total_steps, start_step, console)
    return _Lines(total_steps, start_step)


class _Eta:
    """Time left, from the mean time of the steps that this process has made."""

    def __init__(self, total_steps: int, start_step: int) -> None:
        self.total, self.before, self.began = total_steps, max(start_step - 1, 0), time.monotonic()

    def __call__(self, step: int) -> str:
        if step <= self.before:
            return "-:--:--"
        seconds = (time.monotonic() - self.began) / (step - self.before) * (self.total - step)
        return str(timedelta(seconds=round(seconds)))


class _Quiet:
    def update(self, step: int, values: Mapping[str, float]) -> None: ...

    def warn(self, message: str, word: str = "warning") -> None: ...

    def close(self) -> None: ...


class _Lines:
    """One line per step, the first and the last always, the others at most one per PLAIN_SECONDS."""

    def __init__(self, total_steps: int, start_step: int) -> None:
        self.total, self.eta = total_steps, _Eta(total_steps, start_step)
        self.printed, self.pending = -PLAIN_SECONDS, ""

    def update(self, step: int, values: Mapping[str, float]) -> None:
        numbers = "".join(f"  {word} {values[key]:6.2f}" for key, word in SHOWN.items() if key in values)
        self.pending = f"step {step:>{len(str(self.total))}}/{self.total}{numbers}  ETA {self.eta(step)}"
        if step >= self.total or time.monotonic() - self.printed >= PLAIN_SECONDS:
            self.close()

    def warn(self, message: str, word: str = "warning") -> None:
        # On stdout, like the steps: a rank's standard error goes to its log.
        print(f"{word}: {message}", flush=True)

    def close(self) -> None:
        if self.pending:
            print(self.pending, flush=True)
            self.printed, self.pending = time.monotonic(), ""


class _Bar:
    """A live line at the bottom of the terminal; prints and warnings scroll by above it."""

    def __init__(self, total_steps: int, start_step: int, console: Console) -> None:
        self.eta = _Eta(total_steps, start_step)
        self.bar = RichProgress(
            MofNCompleteColumn(),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=6)),
            TextColumn("{task.fields[numbers]}", table_column=Column(no_wrap=True)),
            TimeElapsedColumn(),
            TextColumn("[dim]ETA[/] [cyan]{task.fields[eta]}", table_column=Column(no_wrap=True)),
            console=console,
            expand=True,
            refresh_per_second=4,
        )
        self.task = self.bar.add_task(
            "", total=total_steps, completed=max(start_step - 1, 0), numbers="", eta="-:--:--"
        )
        self.bar.start()

    def update(self, step: int, values: Mapping[str, float]) -> None:
        shown = [f"[dim]{word}[/] {values[key]:.2f}" for key, word in SHOWN.items() if key in values]
        self.bar.update(self.task, completed=step, numbers=" ".join(shown), eta=self.eta(step))

    def warn(self, message: str, word: str = "warning") -> None:
        self.bar.console.print(f"[yellow]{word}:[/] {escape(message)}", highlight=False)

    def close(self) -> None:
        self.bar.stop()
