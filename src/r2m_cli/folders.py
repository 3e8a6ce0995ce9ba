"""Where runs go, and the checkpoints in them.

The two names that Hydra asks for by `${r2m_...}` in conf/train.yaml are registered by importing this module. A launcher's worker process (joblib, submitit) imports it through `sweep.py`, whose
callback Hydra hands over to it.
"""

import hashlib
import re
from datetime import datetime
from pathlib import Path

from omegaconf import OmegaConf

NUMBER = ".job"  # in a sweep: which job of it the folder is
LONGEST = 180  # characters of a sweep's folder name; file systems end at 255 bytes


def run_dir(resume: str | None, task: str) -> str:
    """Where a single run goes: a resumed one into its own folder, a new one below outputs/."""
    return resume or f"outputs/{task}/{datetime.now():%Y-%m-%d_%H-%M-%S}"


def job_dir(overrides: str | None, seed: int, world: int) -> str:
    """Where a job of a sweep goes, below the sweep's folder: what was overridden, then its seeds.

    `+method=rloo,ppo.beta=0.1` -> `method=rloo,ppo.beta=0.1/seed=0,world=0`: one path component for all that the seeds of
    a method share, without a plus, a slash of a value, or quotes.
    """
    parts = [part.lstrip("+~").replace("/", "_") for part in (overrides or "").split(",")]
    name = ",".join(part for part in parts if part).translate(str.maketrans("", "", "'\"\\"))
    if len(name) > LONGEST:
        name = f"{name[:LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return str(Path(name, f"seed={seed},world={world}"))


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, `checkpoints/step_N`, oldest first."""
    found = [path for path in (run / "checkpoints").glob("step_*") if path.is_dir()]
    return sorted((path for path in found if re.fullmatch(r"step_\d{1,15}", path.name, re.ASCII)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step_"))


def job_number(run: Path) -> int | None:
    """Which job of its sweep a run is; None for one of no sweep, or with a number that is none."""
    file = run / NUMBER
    try:
        return int(file.read_text(encoding="utf-8")) if file.is_file() else None
    except ValueError:
        return None


def remove_empty(folder: Path) -> None:
    """Remove an empty folder, and those of outputs/ or multirun/ above it that are empty then."""
    above = folder.relative_to(Path.cwd()).parents if folder.is_relative_to(Path.cwd()) else ()
    for place in (folder, *(path for path in above if path.parts[:1] in (("outputs",), ("multirun",)))):
        if any(place.iterdir()):
            break
        place.rmdir()


OmegaConf.register_new_resolver("r2m_run_dir", run_dir, replace=True)
OmegaConf.register_new_resolver("r2m_job_dir", job_dir, replace=True)
