"""Groups of runs with one name: their mean curves, and the colours that distinguish groups in all charts."""

from dataclasses import dataclass

import pandas as pd  # type: ignore[import-untyped, unused-ignore]

from r2m_cli.errors import UserError
from r2m_cli.reporting.runs import Run

# Okabe and Ito's colours, which colour-blind readers can distinguish; without yellow, which is hard to see on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@dataclass(frozen=True)
class Group:
    """All runs of one name: repetitions with different seeds."""

    name: str
    runs: list[Run]

    def table(self, name: str) -> pd.DataFrame:
        """The metric's curves (`Run.curve`) side by side, at the steps that all runs have. [steps, runs]"""
        curves = [curve for run in self.runs if len(curve := run.curve(name))]
        return pd.concat(curves, axis="columns", join="inner") if curves else pd.DataFrame()

    def mean(self, name: str) -> pd.Series:
        """The mean of the metric's curves, empty if it was not measured. [steps]"""
        return self.table(name).mean(axis="columns").astype(float)

    def spread(self, name: str) -> pd.Series:
        """One standard deviation over the runs; empty for a single run. [steps]"""
        table = self.table(name)
        return table.std(axis="columns", ddof=1) if table.shape[1] > 1 else pd.Series(dtype=float)


def grouped(runs: list[Run]) -> list[Group]:
    """The runs by name, in the order in which the names first appear."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.name, []).append(run)
    return [Group(name, members) for name, members in groups.items()]


def truth_of(groups: list[Group]) -> str:
    """The metric closest to the truth in these runs: "gold" if any run has it, else the live "reward".

    Raises:
        UserError: no run has either.
    """
    for name in ("gold", "reward"):
        if any(not group.table(name).empty for group in groups):
            return name
    path = groups[0].runs[0].path
    raise UserError(f"runs: {path} has neither gold nor reward in metrics.jsonl; report reads train runs")
