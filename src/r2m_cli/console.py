"""What a command says on its terminal beside the progress of a run: lines of its own, slow work that is counted, time left."""

import sys
import time

from rich.console import Console

from r2m_cli.text import clock

COUNT_SECONDS = 10.0  # slow work that is counted: at most one line in this time


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
