"""Stopping a run in good order: Ctrl-C or SIGTERM once lets the step end and a checkpoint be written, twice ends it now.

A terminal that is closed sends SIGHUP, which counts like SIGTERM: the run can be resumed. Started with `nohup`, it goes on.

The parent's signal handler leaves a file in the run folder, which every rank's loop looks at between steps: one
mechanism for one process and for many, on one machine or several with a shared folder.
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
    """Whether the run shall stop; the main rank looks, so that all ranks stop after the same step."""
    from r2m_cli.distributed import comm  # it brings torch, which the parent and the sinks do without

    return bool(comm.broadcast((run_dir / STOP).exists()))


class Signals:
    """What came in while a run was under way."""

    received: int | None = None


@contextmanager
def on_signal(run_dir: Path, gracefully: str | None, at_once: Callable[[], None] | None = None) -> Iterator[Signals]:
    """Handle SIGINT, SIGTERM and SIGHUP while a task runs.

    Args:
        gracefully: what the first signal makes of the task, which looks for the stop mark that it leaves; only a second one
            ends it now. None: the first one does.
        at_once: called before the task is ended now, which raises SystemExit(128 + signal).
    """
    mark = run_dir / STOP
    for left in (mark, run_dir / PANEL):  # by a process that was killed
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
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup has it ignored
        ending.append(signal.SIGHUP)
    kept = {number: signal.signal(number, handle) for number in ending}
    try:
        yield state
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
        mark.unlink(missing_ok=True)


def _say(text: str) -> None:
    """Print a line to the person; on a terminal over the ^C that stands there."""
    over = "\r\x1b[2K" if sys.stderr.isatty() and on_terminal() else "\n"
    print(f"{over}{text}", file=sys.stderr, flush=True)
