"""The table of a report: each run's results in numbers."""

from pathlib import Path

import pandas as pd  # type: ignore[import-untyped, unused-ignore]
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from r2m_cli.reporting.runs import Run
from r2m_cli.text import fixed

HEADINGS = {
    "run": "run",
    "seed": "seed",
    "gold_start": "gold start",
    "gold_peak": "gold peak",
    "peak_step": "at step",
    "gold_end": "gold end",
    "gold_drop": "drop",
    "proxy_end": "proxy end",
    "reward_end": "live end",
    "kl_end": "KL end",
    "length_end": "length",
    "seconds": "seconds",
}
MAIN = ("run", "seed", "gold_peak", "gold_end", "gold_drop", "proxy_end", "kl_end")


def summarise(runs: list[Run]) -> pd.DataFrame:
    """One row per run, columns as in HEADINGS.

    `gold_drop` is the peak minus the end; `proxy` is the initial, frozen reward model's score; KL is in nats; length is in
    tokens; `seconds` is the total wall time of the run from summary.json. Curves are those of `Run.curve`; NaN: not measured.
    """
    return pd.DataFrame([_row(run) for run in runs], columns=list(HEADINGS))


def _row(run: Run) -> dict[str, object]:
    gold = run.curve("gold")
    row: dict[str, object] = {"run": run.name, "seed": run.seed}
    if len(gold):
        row |= {"gold_start": gold.iloc[0], "gold_end": gold.iloc[-1]}
        row |= {
            "gold_peak": gold.max(),
            "peak_step": int(gold.idxmax()),
            "gold_drop": gold.max() - gold.iloc[-1],
        }
    for column, name in {
        "proxy": "reward_frozen",
        "reward": "reward",
        "kl": "kl",
        "length": "length",
    }.items():
        curve = run.curve(name)
        row[f"{column}_end"] = curve.iloc[-1] if len(curve) else float("nan")
    row["seconds"] = run.summary.get("seconds", float("nan"))
    return row


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `summarise`, with the runs of each label merged into "mean ± std" texts; `seed` becomes their number."""
    merged = []
    for label, rows in table.groupby("run", sort=False):
        numbers = rows.drop(columns=["run", "seed"]).astype(float)
        spread = numbers.std(ddof=1)
        cells = {
            name: _number(name, mean) + (f" ± {_number(name, spread[name])}" if spread[name] == spread[name] else "")
            for name, mean in numbers.mean().items()
        }
        merged.append({"run": label, "seed": f"n = {len(rows)}", **cells})
    return pd.DataFrame(merged, columns=list(HEADINGS))


def _number(column: object, value: object) -> str:
    if not isinstance(value, int | float) or value != value:
        return "-" if value is None or value != value else str(value)
    return fixed(value, 0 if column in ("seconds", "seed", "peak_step") else 2)


def texts(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Headings and cells as text, without empty columns."""
    shown = table.dropna(axis="columns", how="all")
    rows = [[_number(name, row[name]) for name in shown.columns] for row in shown.to_dict("records")]
    return [HEADINGS[name] for name in shown.columns], rows


def markdown(table: pd.DataFrame) -> str:
    """The table as GitHub markdown, two decimals."""
    heads, rows = texts(table)
    rule = ["---", *["---:"] * (len(heads) - 1)]
    rows = [[cell.replace("|", "\\|") for cell in cells] for cells in rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, rule, *rows]) + "\n"


def show(table: pd.DataFrame, console: Console | None = None) -> None:
    """Print the table to the terminal (or `console`); with several seeds also the means, only their main columns."""
    console = console or Console()
    for title, part in parts(table):
        heads, rows = texts(part[[*MAIN]] if title else part)
        shown = Table(title=title or None, title_justify="left", title_style="", box=box.SIMPLE_HEAD)
        shown.padding = (0, 0, 0, 0)  # twelve columns have to fit into eighty characters
        for number, head in enumerate(heads):
            if number == 0:
                shown.add_column(head, vertical="top", overflow="fold", min_width=12)
            else:
                shown.add_column(head.replace(" ", "\n", 1), justify="right", no_wrap=True)
        for cells in rows:
            shown.add_row(
                *(escape(cell.replace(" ± ", "±")) for cell in cells)
            )  # [brackets] in a folder's name are not markup
        console.print(shown)


def write(table: pd.DataFrame, path: Path) -> None:
    """Write the table next to `path`: as .csv (one row per run, full precision) and .md (with the means over seeds)."""
    table.to_csv(path.with_suffix(".csv"), index=False)
    pages = [(f"{title}:\n\n" if title else "") + markdown(part) for title, part in parts(table)]
    path.with_suffix(".md").write_text("\n".join(pages), encoding="utf-8")


def parts(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """(title, rows): the table itself, without a title, and the means over the seeds if runs share a label."""
    found = [("", table)]
    if table["run"].duplicated().any():
        found.append(("Mean ± standard deviation over the seeds", over_seeds(table)))
    return found
