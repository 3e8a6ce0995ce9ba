"""The paper's table 3 with SmolLM2-135M: held-out preference pairs that a reward model orders right, head alone against head and
adapter.

    python experiments/overoptimisation/table3.py NAME=FILE [NAME=FILE ...] [seed=0] [layers=30,6] [jobs=2]

Backbone frozen; the scoring head is fitted on a file's training pairs, then adapter and head are warmed up on the same pairs
(`feedback=r2m_safe`), with the policy's states or, as a control, with the reward model's own. Half of the file's prompts are
held out; the first 64 of their pairs say which pass of the warm-up is kept, and are not counted. The policy is
SmolLM2-135M-Instruct; the backbone is the same network (`layers` 30) or its first layers. Writes outputs/study/table3/table3.csv;
intervals are bootstrapped over distinct prompts.
"""

import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import torch
from study import options
from warmed import evaluated

from r2m_cli.files.jsonl import lines_of
from r2m_cli.maths.statistics import bootstrap_mean
from r2m_cli.stages.accuracy import units_of

sys.path.insert(0, str(Path(__file__).parents[1] / "speed"))
from models import LAYERS, policy_folder

OUT = Path("outputs/study/table3")
CHECKED = 64  # held-out pairs that choose the pass
SETTINGS = [
    "+experiment=hh_rlhf_cpu", "data.rows=640", "data.holdout=0.5", "reward.fit.rows=320", "ppo.prompts_per_step=8",
    "rollout.max_new_tokens=4", "rollout.max_prompt_tokens=172", f"eval.reward_check_pairs={CHECKED}",
]  # fmt: skip


def main() -> None:
    given = options(sys.argv[1:], __doc__)
    layers, seeds, jobs = given.pop("layers", "30,6"), given.pop("seed", "0"), int(given.pop("jobs", "2"))
    if not given:
        raise SystemExit(__doc__)
    if gone := [f"{name}={file}" for name, file in given.items() if not Path(file).is_file()]:
        raise SystemExit(f"{', '.join(gone)}: no such file")
    cells = [
        (name, int(count), states, int(seed))
        for count in layers.split(",")
        for seed in seeds.split(",")
        for states in ("policy", "reward")
        for name in given  # innermost: cells side by side do not wait for one reward model
    ]
    for count in layers.split(","):  # made before the threads: transformers does not import in two at once
        backbone(int(count))
    with ThreadPoolExecutor(jobs) as pool:  # each is a process of its own
        rows = list(pool.map(lambda cell: measure(*cell, Path(given[cell[0]]).resolve()), cells))
    table = pd.DataFrame(rows)
    table.to_csv(OUT / "table3.csv", index=False, float_format="%.4f")
    print(table.to_string())


def backbone(layers: int) -> list[str]:
    """What makes the first `layers` of SmolLM2 the reward model's backbone; nothing for all of them."""
    return [] if layers == LAYERS else [f"reward.base={policy_folder(layers).resolve()}"]


def measure(name: str, layers: int, states: str, seed: int, path: Path) -> dict[str, object]:
    """One row: accuracy of the head alone, of head and adapter, and their difference, each with its interval."""
    run, found = evaluated(
        OUT / f"{name}-{layers}-{states}-{seed}",
        [
            *SETTINGS,
            *backbone(layers),
            f"data.path={path}",
            f"seed={seed}",
            f"data.seed={seed}",
            f"feedback.source={states}",
        ],
        ["eval.pairs=400", "eval.prompts=2"],
    )
    pairs = pd.DataFrame(map(json.loads, lines_of(found / "pairs.jsonl")))
    pairs = pairs[pairs["index"] >= CHECKED]
    text, live = (torch.tensor((pairs[f"margin_{name}"] > 0).to_numpy()).double() for name in ("text", "feedback"))
    (kept,) = re.findall(r"pass kept (\d+)", (run / "warnings.log").read_text())
    row: dict[str, object] = {"pairs": name, "layers": layers, "states": states, "seed": seed, "pass": int(kept)}
    for figure, values in {"text": text, "feedback": live, "difference": live - text}.items():
        estimate = bootstrap_mean(values, 1000, seed, units_of(pairs["prompt"]))
        row |= {figure: estimate.value, f"{figure}_low": estimate.low, f"{figure}_high": estimate.high}
    return row | {"heldout": len(pairs)}


if __name__ == "__main__":
    main()
