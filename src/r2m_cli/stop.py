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

from r2m_cli.progress import on_terminal

MARK = ".stop"


class Stopped(Exception):
    """The run ended after `step` because it was asked to; its checkpoint is written."""

    def __init__(self, step: int):
        super().__init__(f"stopped after step {step}")
        self.step = step


def requested(run_dir: Path) -> bool:
    """Whether the run shall stop; the main rank looks, so that all ranks stop after the same step."""
    from r2m_cli.distributed import comm  # it brings torch, which the parent and the sinks do without

    return bool(comm.broadcast((run_dir / MARK).exists()))


class Signals:
    """What came in while a run was under way."""

    received: int | None = None


@contextmanager
def on_signal(run_dir: Path, gracefully: bool, at_once: Callable[[], None] | None = None) -> Iterator[Signals]:
    """Handle SIGINT, SIGTERM and SIGHUP while a task runs.

    Args:
        gracefully: the first signal becomes the stop mark that the training loop looks for, and only a second one ends the
            task now; else the first one does.
        at_once: called before the task is ended now, which raises SystemExit(128 + signal).
    """
    mark = run_dir / MARK
    mark.unlink(missing_ok=True)
    state = Signals()

    def handle(number: int, frame: FrameType | None) -> None:
        if state.received is not None or not gracefully:
            if at_once is not None:
                at_once()
            raise SystemExit(128 + number)
        state.received = number
        mark.touch()
        _say("r2m: stopping after this step, with a checkpoint; once more to stop now")

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
    """Print a line to the person. On a terminal over the line that the cursor is in, without a newline: a panel that stands
    there, perhaps a rank's, would not know that it has moved; it says the same in its next refresh."""
    stderr = sys.__stderr__
    if stderr is not None and stderr.isatty() and on_terminal():
        print(f"\r\x1b[2K{text}", end="", file=stderr, flush=True)
    else:
        print(f"\n{text}", file=sys.stderr, flush=True)
