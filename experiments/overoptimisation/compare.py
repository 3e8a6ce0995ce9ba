"""results.csv -> comparisons.csv, comparisons.md and figures: means, and method against method, paired by seed.

python experiments/overoptimisation/compare.py FOLDER
"""

import itertools
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import study
from results import best_beta
from scipy import stats

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FRONTIER = 0.05
AT_BEST_BETA, AT_FRONTIER = ("gold_end", "gold_peak"), ("gold_kl4", "gold_kl6", "gold_kl8", "gold_area")
VANILLA = "rloo"
FURTHER = (
    ("r2m_safe", "own_states"),
    ("r2m_safe", "reference_states"),
    ("r2m_judged", "r2m_safe"),
    ("r2m_judged", "offline_labels"),
    ("r2m_judged", "offline_labels_safe"),
)
BESIDE = (VANILLA, "rloo_r2m", "r2m_safe")  # drawn beside the paper's other methods
# A colour-blind-safe set and some more: one for each method of a figure.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999", "#8B4513", "#6A51A3",
    "#F0E442", "#800000", "#4D9221",
)  # fmt: skip


def compare(table: pd.DataFrame, chosen: dict[str, dict[str, float]]) -> pd.DataFrame:
    """One row per world, measure and pair of methods: mean paired difference, 95% interval, p, p after Holm's correction
    for all pairs of methods of that world and measure; the paper's other methods (`study.PAPER`) are a family of their own.

    Compared are every method with vanilla, and the pairs of FURTHER; `gold_end` at each method's own beta (see `best`),
    the measures at a given KL at the frontier's.

    Args:
        chosen: world -> method -> weight.
    """
    rows = []
    for world, part in table.groupby("world", sort=False):
        weights = chosen.get(str(world))
        if weights is None:
            print(
                f"{world}: no weights were chosen for it; gold_end and gold_peak are at those best on these very seeds"
            )
        for measure in AT_BEST_BETA + AT_FRONTIER:
            runs = best(part, weights) if measure in AT_BEST_BETA else part[part["beta"] == FRONTIER]
            wide = runs.pivot(index="seed", columns="method", values=measure)
            pairs = [(name, VANILLA) for name in wide if name != VANILLA] + list(FURTHER)
            found = [
                row(world, measure, name, other, wide[name], wide[other])
                for name, other in pairs
                if name in wide and other in wide
            ]
            papers = [entry for entry in found if entry["method"] in study.PAPER]
            for family in ([entry for entry in found if entry not in papers], papers):
                for p_holm, entry in zip(holm([entry["p"] for entry in family]), family):
                    rows.append(entry | {"p_holm": p_holm})
    return pd.DataFrame(rows)


def best(part: pd.DataFrame, weights: dict[str, float] | None) -> pd.DataFrame:
    """The runs of each method at its own weight; a method that was not run at it is left out.

    Args:
        weights: method -> the weight chosen beforehand. None: nothing was chosen for this world, and the runs choose for
            themselves, which makes the comparison a description and no test.
    """
    own = weights or {str(method): best_beta(runs) for method, runs in part.groupby("method")}
    return part[[own.get(method) == beta for method, beta in zip(part["method"], part["beta"])]]


def row(world: str, measure: str, method: str, against: str, ours: pd.Series, theirs: pd.Series) -> dict[str, Any]:
    """Paired t-test of one method against another; NaN with fewer than two pairs."""
    values = (ours - theirs).dropna()
    ours, theirs = ours[values.index], theirs[values.index]
    entry = {
        "world": world, "measure": measure, "method": method, "against": against, "seeds": len(values),
        "mean": ours.mean(), "mean_against": theirs.mean(), "difference": values.mean(),
    }  # fmt: skip
    if len(values) < 2:
        return entry | {"low": np.nan, "high": np.nan, "p": np.nan}
    half = stats.t.ppf(0.975, len(values) - 1) * values.sem()
    p = stats.ttest_1samp(values, 0.0).pvalue
    return entry | {"low": values.mean() - half, "high": values.mean() + half, "p": p}


def holm(ps: list[float]) -> list[float]:
    """Holm's correction; NaN stays NaN and counts for nothing."""
    known = sorted((p, i) for i, p in enumerate(ps) if p == p)
    corrected, so_far = [float("nan")] * len(ps), 0.0
    for place, (p, i) in enumerate(known):
        so_far = max(so_far, min(1.0, (len(known) - place) * p))
        corrected[i] = so_far
    return corrected


def markdown(comparisons: pd.DataFrame) -> str:
    """One table per measure and family: worlds down, pairs of methods across; difference with its interval, a star where
    p_holm < 0.05, and the number of seeds where some have no such value (their KL did not come so far)."""
    pages, most = [], comparisons.groupby(["world", "method"])["seeds"].transform("max")
    comparisons = comparisons.assign(
        few=[f" n={n}" if n < m else "" for n, m in zip(comparisons["seeds"], most)],
        family=comparisons["method"].isin(study.PAPER),
    )
    for (_, measure), part in comparisons.groupby(["family", "measure"], sort=False):
        cells = part.assign(
            pair=part["method"] + " − " + part["against"],
            cell=[
                f"{r.difference:+.2f} [{r.low:+.2f}, {r.high:+.2f}]{'*' if r.p_holm < 0.05 else ''}{r.few}"
                for r in part.itertuples()
            ],
        )
        wide = cells[cells["seeds"] > 1].pivot(index="world", columns="pair", values="cell").fillna("–")
        wide = wide.reindex([w for w in part["world"].unique() if w in wide.index])
        lines = [f"| {measure} | " + " | ".join(wide.columns) + " |", "|---|" + "---:|" * len(wide.columns)]
        lines += [f"| {world} | " + " | ".join(cells) + " |" for world, *cells in wide.itertuples()]
        pages.append("\n".join(lines) + "\n")
    return "\n".join(pages)


def table_of_means(table: pd.DataFrame) -> str:
    """A table of means over seeds: one row per world, method and beta; – where a seed has no value."""
    columns = [
        "gold_kl4",
        "gold_kl6",
        "gold_kl8",
        "gold_peak",
        "gold_end",
        "kl_end",
        "acc_heldout",
        "acc_onpolicy",
        "labels",
    ]
    lines = [
        "| world | method | beta | seeds | " + " | ".join(columns) + " |",
        "|---|---|---:|---:|" + "---:|" * len(columns),
    ]
    for (world, method, beta), part in table.groupby(["world", "method", "beta"], sort=False):
        values = part[columns].mean(skipna=False)
        cells = [
            "–" if value != value else f"{value:.0f}" if name == "labels" else f"{value:.2f}"
            for name, value in values.items()
        ]
        lines.append(f"| {world} | {method} | {beta:g} | {part['seed'].nunique()} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(table: pd.DataFrame, path: Path) -> None:
    """Gold at the end against KL at the end, a panel per world: a point per method and beta, bars of one standard error."""
    worlds = list(dict.fromkeys(table["world"]))
    methods = list(dict.fromkeys(table["method"]))
    down = -(-len(worlds) // 4)
    across = -(-len(worlds) // down)
    figure, axes = plt.subplots(down, across, figsize=(3.2 * across, 3.2 * down), squeeze=False, layout="constrained")
    for spare in axes.flat[len(worlds) :]:
        spare.axis("off")
    for ax, world in zip(axes.flat, worlds):
        for colour, method in zip(itertools.cycle(COLOURS), methods):
            part = table[(table["world"] == world) & (table["method"] == method)]
            means = part.groupby("beta")[["kl_end", "gold_end"]].agg(["mean", "sem"])
            if len(means):
                kl, gold = means["kl_end"], means["gold_end"]
                ax.errorbar(
                    kl["mean"],
                    gold["mean"],
                    gold["sem"],
                    kl["sem"],
                    "o-",
                    color=colour,
                    label=method,
                    markersize=4,
                    lw=1,
                )
        ax.set(title=world, xlabel="KL at the end, nats")
        ax.grid(color="0.92")
    for row in axes:
        row[0].set_ylabel("gold at the end")
    drawn = {label: line for ax in axes.flat for line, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(drawn.values(), drawn, loc="outside lower center", ncols=max(2, 3 * across // 2), frameon=False)
    figure.savefig(path, dpi=130)


def main(folder: Path) -> None:
    if not (folder / "results.csv").is_file():
        raise SystemExit(f"{folder}: no results.csv there; give the folder that study.py has named")
    table = pd.read_csv(folder / "results.csv")
    comparisons = compare(table, study.own_weights(folder.parent))
    comparisons.to_csv(folder / "comparisons.csv", index=False, float_format="%.6g")
    page = table_of_means(table) + "\n" + markdown(comparisons)
    (folder / "comparisons.md").write_text(page)
    papers = table["method"].isin(study.PAPER)
    draw(table[~papers], folder / "gold_against_kl.png")
    if papers.any():
        beside = table["method"].isin(BESIDE) & table["world"].isin(table[papers]["world"])
        draw(table[papers | beside], folder / "gold_against_kl_paper.png")
    print(page)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
