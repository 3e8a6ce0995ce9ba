"""The progress of a run: a live panel on a terminal, plain lines otherwise, or nothing."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from rich.console import Console

from r2m_cli.console import Eta, on_terminal
from r2m_cli.monitor.catalogue import SHOWN
from r2m_cli.text import fixed

PLAIN_SECONDS = 2.0  # without a terminal: at most one line in this time


class Progress(Protocol):
    """The interface of a run's progress. Steps go from 1 to total_steps; 0 is the state before the first."""

    def stage(self, name: str) -> None:
        """The stage `name` of the step begins."""

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Step `step` is done; `values` are its metrics."""

    def warn(self, message: str, word: str = "warning") -> None:
        """Show a warning (or a note) now."""

    def close(self) -> None:
        """Show any line not yet printed and restore the terminal; may be called twice."""


def make_progress(
    total_steps: int, start_step: int = 0, quiet: bool = False, stopping: Callable[[], bool] = lambda: False
) -> Progress:
    """The progress for the current stdout: `quiet` shows nothing, a terminal gets the panel, a pipe plain lines.

    `start_step` is the first step that will be shown; above 1 only in a resumed run. `stopping` returns whether the run was
    asked to stop, which the panel shows.
    """
    if quiet:
        return _Quiet()
    if not on_terminal():
        return _Lines(total_steps, start_step)
    from r2m_cli.monitor.panel import Panel

    return Panel(total_steps, start_step, Console(file=sys.stdout), stopping)


class _Quiet:
    def stage(self, name: str) -> None: ...

    def update(self, step: int, values: Mapping[str, float]) -> None: ...

    def warn(self, message: str, word: str = "warning") -> None: ...

    def close(self) -> None: ...


class _Lines:
    """One line per step: always for the first and the last, otherwise at most one per PLAIN_SECONDS."""

    def __init__(self, total_steps: int, start_step: int) -> None:
        self.total, self.eta = total_steps, Eta(total_steps, start_step)
        self.printed, self.pending = -PLAIN_SECONDS, ""

    def stage(self, name: str) -> None: ...

    def update(self, step: int, values: Mapping[str, float]) -> None:
        numbers = "".join(f"  {word} {fixed(values[key]):>6}" for key, word in SHOWN.items() if key in values)
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
