"""How a run shows itself: a live panel on a terminal, a plain line now and then elsewhere, or nothing."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from rich.console import Console

from r2m_cli.text import clock, fixed

# metric -> the short word that stands for it, in this order
SHOWN = {"reward": "reward", "reward_frozen": "frozen", "gold": "gold", "kl": "KL"}
PLAIN_SECONDS = 2.0  # without a terminal: at most one line in this time
COUNT_SECONDS = 10.0  # the same for slow work before the steps


class Progress(Protocol):
    """What a run's progress can do. Steps run from 1 to total_steps; 0 is the state before the first."""

    def stage(self, name: str) -> None:
        """The stage `name` of the step begins."""

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Step `step` is done and measured `values`."""

    def warn(self, message: str, word: str = "warning") -> None:
        """Show a warning (or a note) now."""

    def close(self) -> None:
        """Show what is still owed and leave the terminal as it was; may be called twice."""


def make_progress(
    total_steps: int, start_step: int = 0, quiet: bool = False, stopping: Callable[[], bool] = lambda: False
) -> Progress:
    """The progress that fits stdout: `quiet` shows nothing, a terminal gets the panel, a pipe plain lines.

    `start_step` is the first step that will be shown; above 1 only in a resumed run. `stopping` says whether the run was asked
    to stop, for the panel to show.
    """
    if quiet:
        return _Quiet()
    if not on_terminal():
        return _Lines(total_steps, start_step)
    from r2m_cli.panel import Panel

    return Panel(total_steps, start_step, Console(file=sys.stdout), stopping)


def on_terminal() -> bool:
    """Whether stdout is a terminal that a panel can be drawn on."""
    return sys.stdout.isatty() and not Console(file=sys.stdout).is_dumb_terminal


def restore_terminal() -> None:
    """Give the terminal back in place of a process that was killed while its panel was on it."""
    if on_terminal():
        console = Console(file=sys.stdout)
        console.line()
        console.show_cursor(True)


def tell(text: str) -> None:
    """A line of the command itself, on standard error."""
    print(f"r2m: {text}", file=sys.stderr, flush=True)


def say(text: str) -> None:
    """A line of a task on stdout; nothing on the ranks other than the main one. A rank's standard error is its log."""
    from r2m_cli.distributed import comm  # it brings torch, which a report does without

    if comm.is_main():
        print(f"r2m: {text}", flush=True)


class Eta:
    """Time left, from the mean time of the steps that this process has made."""

    def __init__(self, total_steps: int, start_step: int) -> None:
        self.total, self.before, self.began = total_steps, max(start_step - 1, 0), time.monotonic()

    def __call__(self, step: int) -> str:
        if step <= self.before:
            return "-:--:--"
        seconds = (time.monotonic() - self.began) / (step - self.before) * (self.total - step)
        return clock(seconds)


class Count:
    """Slow work whose parts are counted, such as reading labelled pairs: "r2m: WHAT: 64 of 512, ETA 0:00:40" now and then."""

    def __init__(self, what: str, shown: bool = True, before: int = 0) -> None:
        """`shown`: False on the ranks that say nothing. `before`: parts that are done already."""
        self.what, self.shown, self.before = what, shown, before
        self.begun = self.printed = time.monotonic()

    def __call__(self, done: int, total: int, more: str = "") -> None:
        """`done` of `total` parts are done; `more` is written behind them."""
        now = time.monotonic()
        if self.shown and done > self.before and now - self.printed >= COUNT_SECONDS:
            self.printed = now
            eta = clock((now - self.begun) / (done - self.before) * (total - done))
            say(f"{self.what}: {done} of {total}{more}, ETA {eta}")


class _Quiet:
    def stage(self, name: str) -> None: ...

    def update(self, step: int, values: Mapping[str, float]) -> None: ...

    def warn(self, message: str, word: str = "warning") -> None: ...

    def close(self) -> None: ...


class _Lines:
    """One line per step, the first and the last always, the others at most one per PLAIN_SECONDS."""

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
