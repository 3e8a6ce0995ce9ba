"""The results of an evaluation: numbers, their intervals and notes, as a JSON file and as a table."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from r2m_cli.errors import UserError
from r2m_cli.files.jsonl import text_of, valid
from r2m_cli.files.run_folder import EVALUATION
from r2m_cli.maths.statistics import Estimate, bootstrap_mean
from r2m_cli.stages.accuracy import CHANCE, NO_INTERVAL
from r2m_cli.text import number

# shares whose value by chance is 0.5
AGAINST_CHANCE = ("pairs/accuracy", "pairs/accuracy_feedback", "win_rate", "win_rate/length_controlled")


@dataclass
class Measures:
    """Collects numbers; `name` is a number's name in evaluation.json and in the table."""

    run_dir: Path
    resamples: int  # of every interval
    seed: int
    values: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float] | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def number(self, name: str, value: float) -> None:
        """Add a number without an interval."""
        self.values[name] = float(value)

    def estimate(self, name: str, estimate: Estimate) -> None:
        """Add a number with its interval."""
        self.values[name] = estimate.value
        self.intervals[name] = estimate.interval

    def mean(self, name: str, values: Tensor, units: Tensor, bounds: tuple[float, float] | None = None) -> Estimate:
        """Add the mean of one number per prompt or pair, with its interval. [n] -> Estimate.

        Values that are not finite are left out, with a note.

        Args:
            units: [n], from `units_of`; values of one unit are resampled together.
            bounds: as in `bootstrap_mean`.

        Raises:
            UserError: none is finite.
        """
        finite = values.isfinite().cpu()
        kept = values.cpu()[finite]
        if not len(kept):
            raise UserError(
                f"{name}: all {len(values)} values are NaN or infinite; try engine.dtype=fp32, or another model"
            )
        if len(kept) < len(values):
            self.notes.append(f"{name}: {len(values) - len(kept)} of {len(values)} values are not finite, and left out")
        estimate = bootstrap_mean(kept, self.resamples, self.seed, units[finite], bounds)
        self.estimate(name, estimate)
        return estimate

    def rows(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Write a file of JSON lines into the run folder; numbers that are not finite become null."""
        (self.run_dir / name).write_text(text_of(map(valid, rows), allow_nan=False), encoding="utf-8")

    def save(self) -> None:
        """Write evaluation.json: name -> value; under "intervals" name -> [low, high], 95 %, or null if
        there is none; under "notes" the notes."""
        intervals = {k: None if v is None else list(v) for k, v in self.intervals.items()}
        found: dict[str, Any] = {**self.values, "intervals": intervals, "notes": self.notes}
        (self.run_dir / EVALUATION).write_text(json.dumps(found, indent=2))

    def show(self) -> None:
        """Print the notes, then one line per number; the best-of-n curve has its own table."""
        for note in self.notes:
            print(f"r2m: {note}")
        lines = {k: v for k, v in self.values.items() if not k.startswith("best_of/")}
        width = max(map(len, lines), default=0)
        for name, value in lines.items():
            around = "  " + self._around(name) if name in self.intervals else ""
            print(f"  {name:{width}}  {number(value):<10}{around}")
        if self.intervals:
            print(f"  [ ]: 95 % intervals, percentile bootstrap over distinct prompts, {self.resamples} resamples")

    def _around(self, name: str) -> str:
        interval = self.intervals[name]
        if interval is None:
            return NO_INTERVAL
        unsure = f"  {CHANCE}" if name in AGAINST_CHANCE and interval[0] <= 0.5 <= interval[1] else ""
        return f"[{number(interval[0])}, {number(interval[1])}]{unsure}"
