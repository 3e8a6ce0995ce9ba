"""A reward model that has read the starting policy's states, and no RL: a run of one step at a rate of nothing, then evaluated."""

import subprocess
from pathlib import Path

from study import R2M, train

STILL = [
    "feedback=r2m_safe", "feedback.replay_pairs=1", "feedback.lr=0", "train.steps=1", "ppo.lr=0", "ppo.group_size=2", "eval.every=0",
    "engine.threads=1",
]  # fmt: skip


def evaluated(folder: Path, overrides: list[str], evaluation: list[str]) -> tuple[Path, Path]:
    """The folders of the run and of its evaluation; what is there already is kept."""
    run, found = folder / "run", folder / "evaluation"
    if not (run / "summary.json").is_file():
        _command(train(*STILL, *overrides, f"hydra.run.dir={run}"))
    if not (found / "evaluation.json").is_file():
        _command([R2M, "evaluate", f"run={run}", *evaluation, f"hydra.run.dir={found}"])
    return run, found


def _command(words: list[str]) -> None:
    print(" ".join(words), flush=True)
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
