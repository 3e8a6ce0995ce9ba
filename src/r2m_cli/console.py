"""What a command prints besides the progress of a run: its own lines, the progress of slow work, and the time left."""

import sys
import time

from rich.console import Console

from r2m_cli.text import clock

COUNT_SECONDS = 10.0  # progress of slow work: at most one line in this time


def on_terminal() -> bool:
    """Whether stdout is a terminal that a panel can be drawn on."""
    return sys.stdout.isatty() and not Console(file=sys.stdout).is_dumb_terminal


def restore_terminal() -> None:
    """Restore the terminal after a process was killed while it was drawing its panel."""
    if on_terminal():
        console = Console(file=sys.stdout)
        console.line()
        console.show_cursor(True)


def tell(text: str) -> None:
    """Print a line of the command itself on standard error."""
    print(f"r2m: {text}", file=sys.stderr, flush=True)


def say(text: str) -> None:
    """Print a line of a task on stdout, on the main rank only. (The standard error of a rank goes to its log.)"""
    from r2m_cli.distributed import comm  # imports torch, which a report does not need

    if comm.is_main():
        print(f"r2m: {text}", flush=True)


class Eta:
    """Time left, estimated from the mean time of the steps that this process has done."""

    def __init__(self, total_steps: int, start_step: int) -> None:
        self.total, self.before, self.began = total_steps, max(start_step - 1, 0), time.monotonic()

    def __call__(self, step: int) -> str:
        if step <= self.before:
            return "-:--:--"
        seconds = (time.monotonic() - self.began) / (step - self.before) * (self.total - step)
        return clock(seconds)


class Count:
    """Progress of slow work, such as embedding labelled pairs: prints "r2m: WHAT: 64 of 512, ETA 0:00:40" now and then."""

    def __init__(self, what: str, shown: bool = True, before: int = 0) -> None:
        """`shown`: False on the ranks that print nothing. `before`: parts that are already done."""
        self.what, self.shown, self.before = what, shown, before
        self.begun = self.printed = time.monotonic()

    def __call__(self, done: int, total: int, more: str = "") -> None:
        """`done` of `total` parts are done; `more` is printed after the numbers."""
        now = time.monotonic()
        if self.shown and done > self.before and now - self.printed >= COUNT_SECONDS:
            self.printed = now
            eta = clock((now - self.begun) / (done - self.before) * (total - done))
            say(f"{self.what}: {done} of {total}{more}, ETA {eta}")
