"""Run folders -> results.csv, one row per world, method, beta and seed.

python experiments/overoptimisation/results.py FOLDER
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

COLUMNS = [
    "world", "method", "beta", "seed", "gold_start", "gold_peak", "gold_end", "gold_kl4", "gold_kl6", "gold_kl8", "kl_end",
    "proxy_end", "acc_heldout", "acc_onpolicy", "labels", "seconds", "gold_area", "length_end", "eos_end", "repetition_end",
]  # fmt: skip
LAST = 10  # steps whose rollouts make acc_onpolicy


def write(folder: Path) -> pd.DataFrame:
    """results.csv of all finished runs below the folder, whose first two levels are world and method."""
    rows = [row(summary.parent, folder) for summary in sorted(folder.glob("*/*/**/summary.json"))]
    if not rows:
        raise SystemExit(f"{folder}: no finished run in it")
    table = pd.DataFrame(rows, columns=COLUMNS).sort_values(["world", "method", "beta", "seed"])
    if (twice := table.duplicated(["world", "method", "beta", "seed"])).any():
        found = table[twice].iloc[0]
        raise SystemExit(
            f"{folder}: {found.world}, {found.method}, beta {found.beta}, seed {found.seed} was run twice, with other numbers; keep "
            "each set of numbers in a folder of its own (study.py out=FOLDER)"
        )
    table.to_csv(folder / "results.csv", index=False, float_format="%.5g")
    return table


def row(run: Path, folder: Path) -> dict[str, object]:
    """The measures of one run. Gold, proxy, KL, length: means over the fixed prompts, one sampled response each."""
    world, method = run.relative_to(folder).parts[:2]
    config = OmegaConf.load(run / "config.yaml")
    metrics = pd.DataFrame(map(json.loads, (run / "metrics.jsonl").read_text().splitlines())).drop_duplicates(
        "step", keep="last"
    )
    evals = metrics.dropna(subset=["eval/gold"]).set_index("step")
    gold, kl = evals["eval/gold"].to_numpy(), evals["eval/kl"].to_numpy()
    end, steps = evals.iloc[-1], metrics[metrics["step"] > 0]
    judged = steps["reward_model/labels"].max() if "reward_model/labels" in steps else 0
    return {
        "world": world, "method": method, "beta": config.ppo.beta, "seed": config.seed,
        "gold_start": gold[0], "gold_peak": gold.max(), "gold_end": gold[-1],
        **{f"gold_kl{level}": at_kl(gold, kl, level) for level in (4, 6, 8)},
        "gold_area": area(gold, kl, 8.0),
        "kl_end": kl[-1], "proxy_end": end["eval/reward_frozen"], "acc_heldout": end["eval/pair_accuracy"],
        "acc_onpolicy": steps["reward_model/accuracy"].tail(LAST).mean(), "length_end": end["eval/length"],
        "eos_end": end["eval/finished"], "repetition_end": end["eval/repetition"],
        "labels": config.data.pairs + int(judged), "seconds": steps["step_time"].sum(),
    }  # fmt: skip


def at_kl(gold: np.ndarray, kl: np.ndarray, level: float) -> float:
    """Gold where the KL first passes `level`, linear between evaluations; NaN where it never does."""
    above = np.flatnonzero(kl >= level)
    if not len(above):
        return float("nan")
    i = above[0]
    if i == 0:
        return float(gold[0])
    share = (level - kl[i - 1]) / (kl[i] - kl[i - 1])
    return float(gold[i - 1] + share * (gold[i] - gold[i - 1]))


def area(gold: np.ndarray, kl: np.ndarray, limit: float) -> float:
    """Mean of `at_kl` over 32 levels from 0, without it, to `limit` nats; NaN if the KL ends before."""
    levels = np.linspace(0, limit, 33)[1:]
    return float(np.mean([at_kl(gold, kl, level) for level in levels])) if kl.max() >= limit else float("nan")


def best_beta(runs: pd.DataFrame) -> float:
    """The KL weight of one method in one world, by the one-standard-error rule (Breiman et al., Classification and Regression
    Trees, 1984): the largest whose mean gold at the end is within one standard error of the highest mean, so that a weight at
    which one seed in a few over-optimises is not chosen for luck with the others."""
    found = runs.groupby("beta")["gold_end"].agg(["mean", "sem"]).fillna({"sem": 0.0})
    best = found.loc[found["mean"].idxmax()]
    return float(found.index[found["mean"] >= best["mean"] - best["sem"]].max())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    print(write(Path(sys.argv[1])).to_string())
