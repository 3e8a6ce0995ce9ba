"""Stops a run gracefully: the first Ctrl-C or SIGTERM lets the step finish and writes a checkpoint, the second ends it now.

Closing the terminal sends SIGHUP, which counts like SIGTERM: the run can be resumed. A run started with `nohup` continues.

The parent's signal handler creates a file in the run folder, and the loop of every rank checks for it between steps. The
same mechanism works for one process and for many, on one machine or on several with a shared folder.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from r2m_cli.console import on_terminal
from r2m_cli.files.run_folder import PANEL, STOP


class Stopped(Exception):
    """The run ended after `step` because it was asked to; its checkpoint is written."""

    def __init__(self, step: int):
        super().__init__(f"stopped after step {step}")
        self.step = step


def requested(run_dir: Path) -> bool:
    """Whether the run should stop. Only the main rank checks the file, so that all ranks stop after the same step."""
    from r2m_cli.distributed import comm  # imports torch, which the parent and the sinks do not need

    return bool(comm.broadcast((run_dir / STOP).exists()))


class Signals:
    """The signal that was received during a run, if any."""

    received: int | None = None


@contextmanager
def on_signal(run_dir: Path, gracefully: str | None, at_once: Callable[[], None] | None = None) -> Iterator[Signals]:
    """Handle SIGINT, SIGTERM and SIGHUP while a task runs.

    Args:
        gracefully: the message for the first signal, which only leaves the stop mark that the task checks for; a second signal
            ends the task now. None: the first signal ends the task now.
        at_once: called before the task is ended now, by raising SystemExit(128 + signal).
    """
    mark = run_dir / STOP
    for left in (mark, run_dir / PANEL):  # left by a process that was killed
        left.unlink(missing_ok=True)
    state = Signals()

    def handle(number: int, frame: FrameType | None) -> None:
        if state.received is not None or gracefully is None:
            if at_once is not None:
                at_once()
            raise SystemExit(128 + number)
        state.received = number
        mark.touch()
        if not (run_dir / PANEL).exists():
            _say(f"r2m: {gracefully}; once more to stop now")

    ending = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
        ending.append(signal.SIGHUP)
    kept = {number: signal.signal(number, handle) for number in ending}
    try:
        yield state
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
        mark.unlink(missing_ok=True)


def _say(text: str) -> None:
    """Print a line for the user; on a terminal it overwrites the ^C shown there."""
    over = "\r\x1b[2K" if sys.stderr.isatty() and on_terminal() else "\n"
    print(f"{over}{text}", file=sys.stderr, flush=True)
