"""Run folders written by hand, as `r2m train` leaves them, for the tests of reports."""

import json
from collections.abc import Sequence
from pathlib import Path

import yaml

GOLD = [1.0, 2.0, 3.0, 2.5, 1.5]
STAGES = {"time/rollout": 0.1, "time/annotate": 0.05, "time/policy_step": 0.08}


def make_run(
    folder: Path, seed=0, shift=0.0, with_eval=True, with_gold=True, golds: Sequence[float] = GOLD, **config
) -> Path:
    """A run of 4 steps whose evaluated gold rises by 2 and falls by 1.5; row 0 is before training."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": seed, **config}))
    lines = []
    for step, gold in enumerate(golds):
        row = {"step": step}
        if step:
            row |= {"reward": step + 0.5, "reward_frozen": step - 0.5, "kl": step * 2.0, "step_time": 0.25, **STAGES}
            row |= {"completions/mean_length": 7.0} | ({"gold": 100.0} if with_gold else {})
        if with_eval:
            row |= {
                "eval/reward": step + 1.0,
                "eval/reward_frozen": step * 1.0,
                "eval/kl": step * 3.0,
                "eval/length": 8,
            }
            row |= {"eval/gold": gold + shift} if with_gold else {}
        lines.append(json.dumps(row) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))
    (folder / "summary.json").write_text('{"gold": 1.5, "seconds": 2.5}')
    return folder


def add_samples(folder: Path, rows: Sequence[tuple[int, str, str, float]]) -> Path:
    """Append (step, prompt, response, live reward) to the run's samples."""
    with (folder / "samples.jsonl").open("a") as file:
        for step, prompt, response, reward in rows:
            scores = {"reward": reward, "reward_frozen": reward - 1, "gold": -reward, "kl": 0.5}
            message = [{"role": "user", "content": prompt}]
            row = {"step": step, "prompt": message, "response": response, "finished": True, **scores}
            file.write(json.dumps(row) + "\n")
    return folder
