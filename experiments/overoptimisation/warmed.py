"""A reward model that has read the starting policy's states, and no RL: a run of one step at a rate of nothing, then evaluated."""

import json
import shutil
import subprocess
from pathlib import Path

from study import R2M, train

STILL = [
    "feedback=r2m_safe", "feedback.replay_pairs=1", "feedback.lr=0", "train.steps=1", "ppo.lr=0", "ppo.group_size=2", "eval.every=0",
    "engine.threads=1",
]  # fmt: skip


def evaluated(folder: Path, overrides: list[str], evaluation: list[str]) -> tuple[Path, Path]:
    """The folders of the run and of its evaluation; what is there already is kept, if it was made with the same settings."""
    run, found, settings = folder / "run", folder / "evaluation", folder / "settings.json"
    asked = [[*STILL, *overrides], evaluation]
    if settings.is_file() and json.loads(settings.read_text()) != asked:
        raise SystemExit(f"{folder}: made with other settings ({settings}); move it away")
    folder.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps(asked, indent=2))
    if not (run / "summary.json").is_file():
        shutil.rmtree(run, ignore_errors=True)  # a run that was broken off: it has one step
        _command(train(*STILL, *overrides, f"hydra.run.dir={run}"))
    if not (found / "evaluation.json").is_file():
        shutil.rmtree(found, ignore_errors=True)
        _command([R2M, "evaluate", f"run={run}", *evaluation, f"hydra.run.dir={found}"])
    return run, found


def _command(words: list[str]) -> None:
    print(" ".join(words), flush=True)
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
