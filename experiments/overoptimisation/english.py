"""Over-optimisation on real English with a known truth: best-of-n of SmolLM2-135M-Instruct in the English world, whose labellers
take long words for eloquence.

    python experiments/overoptimisation/english.py [seed=0,1,2] [jobs=2] [layers=6] [samples=64] [prompts=64] [key=value ...]

The best of n responses by the initial reward model against the best of the same n by the one that reads states (`feedback=r2m_safe`
after its warm-up): the policy's, or, as a control, the reward model's own. The reward model's backbone is the first `layers` of
SmolLM2, frozen. Started again it goes on. Further key=value go to every run. Writes outputs/study/english/english.csv and .png, and
english_picks.csv: gold and long words of what is picked; english_paired.csv: differences in gold, paired by prompt.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import pandas as pd
import torch
from study import options
from warmed import evaluated

from r2m_cli.data.english_world import EnglishWorld
from r2m_cli.files.jsonl import lines_of
from r2m_cli.maths.best_of_n import best_of_n
from r2m_cli.maths.statistics import bootstrap_mean

sys.path.insert(0, str(Path(__file__).parents[1] / "speed"))
from models import policy_folder

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OUT = Path("outputs/study/english")
STATES = ("policy", "reward")
COLUMNS = ("proxy", "live", "gold", "long_words")
LINES = {
    ("policy", "gold"): ("the initial reward model", "#0072B2"),
    ("policy", "gold_live"): ("r2m_safe", "#D55E00"),
    ("reward", "gold_live"): ("r2m_safe, the reward model's own states", "#009E73"),
}


def main() -> None:
    given = {"seed": "0,1,2", "jobs": "2", "layers": "6", "samples": "64", "prompts": "64"}
    given |= options(sys.argv[1:], __doc__)
    seeds, jobs, layers, samples, prompts = (given.pop(key) for key in ("seed", "jobs", "layers", "samples", "prompts"))
    shared = [
        "+experiment=english", "ppo.beta=0", "ppo.prompts_per_step=16", f"reward.base={policy_folder(int(layers)).resolve()}",
        *(f"{key}={value}" for key, value in given.items()),
    ]  # fmt: skip
    best_of = [f"eval.best_of={samples}", f"eval.prompts={prompts}"]

    def measure(cell: tuple[str, str]) -> pd.DataFrame:
        states, seed = cell
        overrides = [*shared, f"feedback.source={states}", f"seed={seed}", f"data.seed={seed}"]
        _, found = evaluated(OUT / f"{states}-{seed}", overrides, best_of)
        return pd.read_csv(found / "best_of_n.csv").assign(states=states, seed=int(seed))

    # Innermost the seeds: cells side by side do not wait for one reward model.
    with ThreadPoolExecutor(int(jobs)) as pool:
        table = pd.concat(pool.map(measure, [(states, seed) for states in STATES for seed in seeds.split(",")]))
    table.to_csv(OUT / "english.csv", index=False, float_format="%.4f")
    means = ["kl", "proxy", "gold", "live", "gold_live"]
    print(table.groupby(["states", "n"])[means].mean().round(2).to_string())
    picks = pd.concat([picked(seed) for seed in seeds.split(",")])
    of_seed = picks.groupby(["seed", "by"], sort=False).mean(numeric_only=True)
    of_seed.to_csv(OUT / "english_picks.csv", float_format="%.4f")
    print(of_seed.round(2).to_string())
    gains = paired(picks)
    gains.to_csv(OUT / "english_paired.csv", index=False, float_format="%.4f")
    print(f"gold of the pick among {samples}, paired, with 95% intervals over distinct prompts:")
    print(gains.round(2).to_string(index=False))
    draw(table, OUT / "english.png")


def picked(seed: str) -> pd.DataFrame:
    """Of one seed: gold and long words of the best of all samples by each reward model, of the best of a quarter of them by
    the initial one, and of the responses as they come. A row per distinct prompt: of two equal ones the mean."""
    found = []
    for states in STATES:
        folder = OUT / f"{states}-{seed}" / "evaluation"
        rows = pd.DataFrame(map(json.loads, lines_of(folder / "best_of_n.jsonl")))
        rows["long_words"] = [EnglishWorld().long_words(response) for response in rows["response"]]
        score = {name: torch.tensor(rows[name].to_numpy().reshape(rows["prompt"].nunique(), -1)) for name in COLUMNS}
        prompts = [entry["instruction"] for entry in json.loads((folder / "alpaca_eval.json").read_text())]
        n = score["gold"].shape[1]
        # The responses and what the initial reward model gives them are the same, whichever states are read.
        for by, scored, count in (
            ("none", "proxy", 1),
            ("initial", "proxy", n),
            ("initial_quarter", "proxy", max(1, n // 4)),
            (states, "live", n),
        ):
            best = {name: best_of_n(score[scored], score[name], count) for name in ("gold", "long_words")}
            found.append(pd.DataFrame(best).assign(seed=seed, by=by, prompt=prompts))
    table = pd.concat(found).drop_duplicates()
    return table.groupby(["seed", "by", "prompt"], sort=False, as_index=False).mean()


def paired(picks: pd.DataFrame) -> pd.DataFrame:
    """Gold of one's pick less that of another's, by seed and over all seeds: means over prompts, with intervals."""
    gold = picks.pivot(index=["seed", "prompt"], columns="by", values="gold")
    pairs = (("policy", "initial"), ("reward", "initial"), ("policy", "reward"), ("initial_quarter", "initial"))
    rows = []
    for seed, part in [*gold.groupby("seed"), ("all", gold)]:
        for by, against in pairs:
            estimate = bootstrap_mean(torch.tensor((part[by] - part[against]).to_numpy()), 2000, seed=0)
            rows.append({"seed": seed, "by": by, "against": against, "prompts": len(part)} | estimate._asdict())
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Gold of the best of n against the KL of best-of-n: mean over seeds, and thin lines for each."""
    figure, ax = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    for (states, score), (label, colour) in LINES.items():
        part = table[table["states"] == states]
        for _, run in part.groupby("seed"):
            ax.plot(run["kl"], run[score], color=colour, lw=0.5, alpha=0.5)
        mean = part.groupby("n")[["kl", score]].mean()
        ax.plot(mean["kl"], mean[score], "o-", color=colour, lw=1.5, ms=4, label=f"best by {label}")
    ax.set(xlabel="KL of best-of-n, nats", ylabel="gold")
    ax.grid(color="0.92")
    ax.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
