"""What a stop at a fixed KL would have cost: regret against each run's peak of gold, by threshold.

    python experiments/overoptimisation/stopping.py FOLDER [method=rloo,r2m_safe,r2m_judged]

Regret is gold at its peak less gold at the first evaluation whose KL is above the threshold (the last one where it never is), in
points of gold. The peak is the highest of thirteen noisy means, so that no rule that does not know it can have regret 0. "At the
end" is what a run without a stop pays.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import OmegaConf
from study import options

THRESHOLDS = (2, 3, 4, 5, 6, 7, 8, 10, 12)


def regrets(run: Path) -> dict[str, float]:
    """Threshold -> regret of one run."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evals = [(row["eval/kl"], row["eval/gold"]) for row in rows if "eval/gold" in row]
    kl, gold = map(np.array, zip(*evals))
    found = {"at the end": gold.max() - gold[-1]}
    for threshold in THRESHOLDS:
        above = np.flatnonzero(kl > threshold)
        found[f"KL > {threshold}"] = gold.max() - gold[above[0] if len(above) else -1]
    return found


def main(folder: Path, methods: list[str]) -> None:
    """stopping.csv, a row per run; printed are means over seeds."""
    rows = []
    for method in methods:
        for summary in sorted(folder.glob(f"*/{method}/**/summary.json")):
            config = OmegaConf.load(summary.parent / "config.yaml")
            run = {"world": summary.relative_to(folder).parts[0], "method": method, "beta": config.ppo.beta}
            rows.append(run | {"seed": config.seed} | regrets(summary.parent))
    if not rows:
        raise SystemExit(f"{folder}: no finished run of {', '.join(methods)} in it")
    table = pd.DataFrame(rows)
    table.to_csv(folder / "stopping.csv", index=False, float_format="%.3f")
    means = table.drop(columns="seed").groupby(["world", "method", "beta"]).mean()
    print(means.round(2).to_string())


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    given = options(sys.argv[2:], __doc__)
    main(Path(sys.argv[1]), given.get("method", "rloo,r2m_safe,r2m_judged").split(","))
