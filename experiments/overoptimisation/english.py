"""Over-optimisation on real English with a known truth: SmolLM2-135M-Instruct in the English world, whose labellers take long
words for eloquence; vanilla against `r2m_safe`, and against `r2m_judged` with careful labels.

    python experiments/overoptimisation/english.py [seed=0,1,2] [jobs=2] [method=rloo,r2m_safe,r2m_judged] [layers=6] [key=value ...]

The reward model's backbone is the first `layers` of SmolLM2, frozen: a generic model weaker than the policy. `r2m_judged`
asks the truth itself for 15% of the labels. Started again it goes on. Writes outputs/study/english/results.csv, whose rows are
those of the study, and english.png.
"""

import json
import sys
from pathlib import Path

import matplotlib
import pandas as pd
import results
from omegaconf import OmegaConf
from study import BUDGET, sweep

sys.path.insert(0, str(Path(__file__).parents[1] / "speed"))
from models import policy_folder

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OUT = Path("outputs/study/english")
PAIRS, STEPS = 512, 32
REPLAY = "feedback.replay_pairs=4"  # more would cost more than the step itself
METHODS = {
    "rloo": ["feedback=none"],
    "r2m_safe": ["feedback=r2m_safe", REPLAY],
    "r2m_judged": [
        "feedback=r2m_judged", REPLAY, "feedback.judge_replay=8", f"feedback.judge_pairs={BUDGET * PAIRS / STEPS:g}"
    ],
}  # fmt: skip
COLOURS = {"rloo": "#0072B2", "r2m_safe": "#D55E00", "r2m_judged": "#009E73"}


def main() -> None:
    given = {"seed": "0,1,2", "jobs": "2", "method": ",".join(METHODS), "layers": "6"}
    given |= dict(text.split("=", 1) for text in sys.argv[1:] if "=" in text)
    seeds, jobs, wanted, layers = (given.pop(key) for key in ("seed", "jobs", "method", "layers"))
    methods = wanted.split(",")
    if set(methods) - set(METHODS) or any("=" not in text for text in sys.argv[1:]):
        raise SystemExit(__doc__)
    shared = [
        "+experiment=english", f"data.pairs={PAIRS}", f"train.steps={STEPS}",
        f"reward.base={policy_folder(int(layers)).resolve()}", *(f"{key}={value}" for key, value in given.items()),
    ]  # fmt: skip
    for method in methods:
        sweep(OUT / "english" / method, [*shared, *METHODS[method]], seeds, jobs)
    print(results.write(OUT).to_string())
    draw(OUT / "english.png")


def draw(path: Path) -> None:
    """Gold and the initial reward model's score against KL, a line per run, one point per evaluation."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    for summary in sorted(OUT.glob("english/*/**/summary.json")):
        method, seed = summary.relative_to(OUT).parts[1], OmegaConf.load(summary.parent / "config.yaml").seed
        lines = (summary.parent / "metrics.jsonl").read_text().splitlines()
        evals = pd.DataFrame(map(json.loads, lines)).dropna(subset=["eval/gold"])
        for ax, name in zip(axes, ("gold", "reward_frozen")):
            ax.plot(
                evals["eval/kl"], evals[f"eval/{name}"], "o-", color=COLOURS[method], lw=1, ms=3,
                label=f"_{method}" if seed else method,
            )  # fmt: skip
    for ax, title in zip(axes, ("gold", "score of the initial reward model")):
        ax.set(title=title, xlabel="KL, nats")
        ax.grid(color="0.92")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
