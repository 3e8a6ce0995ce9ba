"""Where do the policy's states raise the reward model's accuracy? A map over the policy's size, the reward model and its number
of labelled pairs, and the step of training.

    python experiments/overoptimisation/feedback_map.py [seed=40,41] [jobs=2]

Writes outputs/study/map/map.csv and map.png. Every cell is a run with `feedback=r2m_safe` whose policy learns from the live
reward; the reward model's initial score is asked about the same responses. A policy that games the live score shows it in the
live score's accuracy, so that the gain is understated, if anything. `own_states` is the control: the same recipe with the reward
model's own states in place of the policy's; its policy, and so its responses, are its own.
"""

import json
import sys
from pathlib import Path

import matplotlib
import pandas as pd
from omegaconf import OmegaConf
from study import options, sweep

from r2m_cli.config.old_keys import translated

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OUT = Path("outputs/study/map")
POLICIES = {"1 layer, d 32": "32x1x4", "2 layers, d 64": "64x2x4", "3 layers, d 128": "128x3x4"}
REWARD_MODELS = {"frozen": "strong_frozen", "tuned": "strong_tuned"}
PAIRS = (1000, 4000)
STATES = {"policy": "r2m_safe", "reward": "own_states"}
SPANS = {"1–5": (1, 5), "16–20": (16, 20), "36–40": (36, 40)}


def main() -> None:
    given = {"seed": "40,41", "jobs": "2"} | options(sys.argv[1:], __doc__)
    if len(given) > 2:
        raise SystemExit(__doc__)
    for reward, world in REWARD_MODELS.items():
        for size, shape in POLICIES.items():
            for states, name in STATES.items():
                overrides = [
                    f"+world={world}", "+method=rloo", "feedback=r2m_safe", f"feedback.source={states}", "ppo.beta=0.05",
                    f"policy.size={shape}", f"data.pairs={','.join(map(str, PAIRS))}",
                    "train.steps=40", "eval.every=40", "eval.reward_check_pairs=1024", "eval.pairs=1024",
                ]  # fmt: skip
                sweep(
                    OUT / reward / size.replace(", ", "_").replace(" ", "") / name,
                    overrides,
                    given["seed"],
                    given["jobs"],
                )
    table = pd.DataFrame([row for summary in sorted(OUT.glob("*/*/*/**/summary.json")) for row in rows(summary.parent)])
    table.to_csv(OUT / "map.csv", index=False, float_format="%.4f")
    draw(table, OUT / "map.png")
    cell = ["reward_model", "pairs", "states", "policy"]
    means = table.pivot_table(index=cell, columns="steps", values="gain", sort=False)
    print("gain in accuracy, points\n" + (100 * means).round(1).to_string())


def rows(run: Path) -> list[dict[str, object]]:
    """Accuracies of one run: on 1024 held-out labelled pairs before RL, and on the pairs of each span's rollouts."""
    config = OmegaConf.create(translated(OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))))
    metrics = pd.DataFrame(map(json.loads, (run / "metrics.jsonl").read_text().splitlines())).set_index("step")
    size = next(name for name, shape in POLICIES.items() if shape == config.policy.size)
    cell = {
        "reward_model": "frozen" if config.reward.fit.parameters == "head" else "tuned", "policy": size,
        "pairs": config.data.pairs, "states": config.feedback.source, "seed": config.seed,
    }  # fmt: skip
    found = [("held-out", metrics.loc[0, "eval/pair_accuracy_frozen"], metrics.loc[0, "eval/pair_accuracy"])]
    for name, (first, last) in SPANS.items():
        part = metrics.loc[first:last]
        found.append((name, part["reward_model/accuracy_frozen"].mean(), part["reward_model/accuracy"].mean()))
    return [cell | {"steps": steps, "frozen": a, "live": b, "gain": b - a} for steps, a, b in found]


def draw(table: pd.DataFrame, path: Path) -> None:
    """Gain in accuracy by reading states, percentage points, by span; a panel per reward model and number of pairs."""
    panels = [(reward, pairs) for reward in REWARD_MODELS for pairs in PAIRS]
    figure, axes = plt.subplots(1, len(panels), figsize=(3.1 * len(panels), 3.4), sharey=True, layout="constrained")
    for ax, (reward, pairs) in zip(axes, panels):
        for colour, size in zip(("#56B4E9", "#E69F00", "#0072B2"), POLICIES):
            for states, style in (("policy", "o-"), ("reward", "x:")):
                chosen = table[(table["reward_model"] == reward) & (table["pairs"] == pairs)]
                part = chosen[(chosen["policy"] == size) & (chosen["states"] == states)]
                gain = 100 * part.groupby("steps", sort=False)["gain"].mean()
                ax.plot(gain.index, gain, style, color=colour, lw=1, label=f"policy {size}; {states}'s states")
        ax.axhline(0, color="0.6", lw=0.8)
        ax.set(title=f"{reward} reward model, {pairs} pairs", xlabel="step")
        ax.grid(color="0.92")
    axes[0].set_ylabel("gain in accuracy, points")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
