"""Commands in a real terminal of a chosen size, and what its screen shows."""

import fcntl
import os
import pty
import select
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyte


class Terminal:
    """A pseudo-terminal with a process in it, and the screen that a person would see."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str], columns: int, rows: int) -> None:
        self.screen = pyte.Screen(columns, rows)
        self.stream = pyte.ByteStream(self.screen)
        self.shown = b""
        self.ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (rows, columns))
        known = {key: value for key, value in environment.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}

        def own_terminal() -> None:  # so that Ctrl-C reaches it
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            command, cwd=folder, env=known | {"TERM": "xterm-256color"}, stdin=theirs, stdout=theirs, stderr=theirs,
            start_new_session=True, preexec_fn=own_terminal,
        )  # fmt: skip
        os.close(theirs)

    def lines(self) -> list[str]:
        """The screen's lines, without empty ones at its end."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip().split("\n")

    def until(self, seen: Callable[[], bool], seconds: float = 120) -> None:
        """Read until `seen` is true of the screen, or of what it holds when the process has ended."""
        deadline = time.monotonic() + seconds
        while not seen():
            assert time.monotonic() < deadline, self.lines()
            if select.select([self.ours], [], [], 0.2)[0]:
                try:
                    part = os.read(self.ours, 4096)
                except OSError:  # Linux says so when the other side has closed
                    part = b""
                assert part, self.lines()
                self.shown += part
                self.stream.feed(part)

    def end(self, seconds: float = 60) -> int:
        """Read to the end; returns the exit code."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                part = os.read(self.ours, 4096) if select.select([self.ours], [], [], 0.2)[0] else None
            except OSError:
                part = b""
            if part == b"":
                break
            self.shown += part or b""
            self.stream.feed(part or b"")
        return self.process.wait(timeout=10)

    def type(self, keys: str) -> None:
        """What a person types; "\\x03" is Ctrl-C."""
        os.write(self.ours, keys.encode())


@contextmanager
def terminal(
    command: list[str], folder: Path, environment: dict[str, str], columns: int = 90, rows: int = 30
) -> Iterator[Terminal]:
    """A terminal with `command` in it, whose process does not outlive the block."""
    made = Terminal(command, folder, environment, columns, rows)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()
        os.close(made.ours)
