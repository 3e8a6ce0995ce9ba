"""The live panel of a run on a terminal: its stage, its step, and the curves of reward, gold and KL."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from rich.box import ROUNDED
from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.control import Control
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel as Frame
from rich.progress_bar import ProgressBar
from rich.segment import ControlType
from rich.table import Table
from rich.text import Text

from r2m_cli.console import Eta
from r2m_cli.monitor.catalogue import SHOWN
from r2m_cli.text import clock, fixed

SPARKS, ASCII_SPARKS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
# A terminal smaller than this gets one line; the panel itself takes eight.
WIDTH, HEIGHT = 50, 12
FREE = 5  # columns left free to the right of the panel, so that the terminal's own ^C^C does not wrap to a new line
STOPPING = "stopping after this step; Ctrl-C once more to stop now"


class Panel:
    """A panel at the bottom of the terminal; prints and warnings scroll by above it.

    `stopping` returns whether the run was asked to stop; it is called at every refresh, four times a second.
    """

    def __init__(self, total_steps: int, start_step: int, console: Console, stopping: Callable[[], bool]) -> None:
        self.total, self.step, self.console, self.stopping = total_steps, max(start_step - 1, 0), console, stopping
        self.eta, self.began = Eta(total_steps, start_step), time.monotonic()
        self.stages: list[str] = []  # the stages seen so far, in order
        self.current, self.since = "", self.began
        self.courses: dict[str, list[float]] = {key: [] for key in SHOWN}
        self.closed = False
        # The refresh thread reads what this thread writes: lists only grow, and everything else is replaced in one assignment.
        self.live = Live(
            console=console,
            get_renderable=self._view,
            redirect_stderr=sys.stderr.isatty(),  # a rank's standard error goes to its log
            vertical_overflow="crop",
        )
        console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))
        # Draw the first frame here: otherwise the refresh thread and a first note could both assume that the screen is empty.
        self.live.start(refresh=True)

    def stage(self, name: str) -> None:
        self.since, self.current = time.monotonic(), name
        if name not in self.stages:
            self.stages.append(name)

    def update(self, step: int, values: Mapping[str, float]) -> None:
        self.step = step
        for key, course in self.courses.items():
            if key in values:
                course.append(values[key])

    def warn(self, message: str, word: str = "warning") -> None:
        self.console.print(f"[yellow]{word}:[/] {escape(message)}", highlight=False)

    def close(self) -> None:
        self.closed = True  # the last frame, which stays, is one line
        self.live.stop()

    def _view(self) -> RenderableType:
        width, height = self.console.size
        if self.closed:
            return self._line()
        if width < WIDTH or height < HEIGHT:
            return Constrain(self._line(), width - FREE if width > 4 * FREE else width)
        grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(justify="right", no_wrap=True)
        grid.add_column(no_wrap=True, ratio=1)
        grid.add_column(justify="right", no_wrap=True, style="dim")
        for key, course in self.courses.items():
            if course:
                low, high = min(course), max(course)
                line = sparkline(course, max(width - FREE - 40, 8), self.console.options.ascii_only)
                grid.add_row(
                    SHOWN[key], f"[bold]{fixed(course[-1])}", f"[cyan]{line}", f"{fixed(low)} to {fixed(high)}"
                )
        title = f"[yellow]{STOPPING}" if self.stopping() else None
        body = Group(self._stages(), self._bar(), grid)
        return Frame(
            body, title=title, title_align="left", box=ROUNDED, border_style="dim", padding=(0, 1), width=width - FREE
        )

    def _stages(self) -> Text:
        """The stages in one row, with the current one marked, and its time after the first second."""
        text = Text(no_wrap=True, overflow="ellipsis")
        for name in list(self.stages):
            text.append("  " if len(text) else "")
            if name == self.current:
                seconds = int(time.monotonic() - self.since)
                text.append(f"> {_words(name)}{f' {seconds} s' if seconds else ''}", style="bold")
            else:
                text.append(_words(name), style="dim")
        return text if len(text) else Text("starting", style="dim")

    def _bar(self) -> Table:
        grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
        grid.add_column(ratio=1)
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True)
        bar = ProgressBar(total=self.total, completed=self.step)
        grid.add_row(bar, f"{self.step}/{self.total}", f"[dim]{self._elapsed()}  ETA[/] [cyan]{self.eta(self.step)}")
        return grid

    def _line(self) -> Text:
        """Everything in one line, the most important first; cut off at the width of the terminal."""
        text = Text(f"{self.step}/{self.total}", no_wrap=True, overflow="ellipsis")
        if not self.closed:
            text.append(f" {'stopping' if self.stopping() else _words(self.current)}", style="bold")
        for key, course in self.courses.items():
            if course:
                text.append(f" {SHOWN[key]} ", style="dim").append(fixed(course[-1]))
        if self.closed:
            return text.append(f"  {self._elapsed()}", style="dim")
        return text.append(" ETA ", style="dim").append(self.eta(self.step), style="cyan")

    def _elapsed(self) -> str:
        return clock(time.monotonic() - self.began)


def sparkline(values: Sequence[float], width: int, ascii_only: bool = False) -> str:
    """A curve of `values` in at most `width` characters, scaled from the lowest to the highest value. If there are more values
    than characters, each character shows a mean."""
    count = len(values)
    if count > width:
        edges = [i * count // width for i in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(values), max(values)
    signs = ASCII_SPARKS if ascii_only else SPARKS
    scale = (len(signs) - 1) / (high - low) if high > low else 0.0
    return "".join(signs[round((value - low) * scale)] for value in values)


def _words(stage: str) -> str:
    return stage.replace("_", " ")
