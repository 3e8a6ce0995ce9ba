"""The results of an analysis: each figure's numbers and conditions, raw points, and a table that compares with the paper."""

import csv
import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from r2m_cli.errors import printable
from r2m_cli.files.run_folder import ANALYSIS
from r2m_cli.maths.statistics import LEVEL, Estimate, ends
from r2m_cli.text import fixed, number

NAME = ANALYSIS


@dataclass
class Results:
    """Collects the contents of `analysis.json` and of the table in the terminal."""

    run_dir: Path  # the final folder of all files
    resamples: int  # of every interval
    seed: int
    conditions: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)  # "figure1", ... -> its numbers
    notes: list[str] = field(default_factory=list)
    lines: list[tuple[str, str, str, str, str]] = field(default_factory=list)  # figure, what, here, interval, paper

    @property
    def folder(self) -> Path:
        """The temporary folder for files until all of them are written."""
        return self.run_dir / ".analysis.partial"

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Files written inside the block appear in the run folder at its end, or, after an error, not at all."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        try:
            yield
            for file in self.folder.iterdir():
                file.rename(self.run_dir / file.name)
        finally:
            shutil.rmtree(self.folder)

    def line(self, figure: str, what: str, value: Estimate | float, paper: str = "") -> None:
        """Add a line to the table: a figure's number next to the paper's."""
        interval = ""
        if isinstance(value, Estimate):
            interval = f"[{digits(value.low)}, {digits(value.high)}]" if value.interval is not None else "none"
        middle = value.value if isinstance(value, Estimate) else value
        self.lines.append((figure, what, digits(middle), interval, paper))

    def table(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Write rows of raw points as a CSV file; every row has the same columns."""
        with (self.folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def save(self) -> None:
        """Write analysis.json; a number that is not finite becomes null."""
        found = {
            "conditions": self.conditions | {"seed": self.seed, "bootstrap": self.resamples, "level": LEVEL},
            **self.figures,
            "notes": self.notes,
        }
        text = printable(json.dumps(plain(found), indent=2, ensure_ascii=False))
        (self.folder / NAME).write_text(text, encoding="utf-8")

    def show(self) -> None:
        """Print notes and table."""
        console = Console()
        for note in self.notes:
            print(f"r2m: {note}")
        table = Table("figure", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("what", min_width=20, overflow="fold")
        for head in ("here", f"{LEVEL:.0%} interval", "the paper"):
            table.add_column(head, justify="right", no_wrap=True)
        last = ""
        for figure, *cells in self.lines:
            table.add_row("" if figure == last else figure, *cells)
            last = figure
        console.print(table)


def digits(value: float) -> str:
    """Three decimals, or two significant digits for a number too small for that."""
    return fixed(value, 3) if abs(value) >= 0.01 or value == 0 else number(value, 2)


def estimate(value: Tensor, found: Tensor) -> Estimate:
    """A value ([] or a number) with the interval of its resamples, [resamples]; without an interval if they are all equal."""
    low, high = (end.item() for end in ends(found))
    if high - low < 1e-12:  # of a single pair, for example
        low = high = math.nan
    return Estimate(float(value), low, high)


def plain(value: Any) -> Any:
    """A value for JSON: estimates as {value, low, high}, numbers that are not finite as null."""
    if isinstance(value, Estimate):
        return plain(value._asdict())
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
