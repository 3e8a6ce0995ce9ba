"""Where runs go: the two names that Hydra asks for by `${r2m_...}` in conf/train.yaml.

Importing this module registers them. A launcher's worker process (joblib, submitit) imports it through `sweep.py`, whose
callback Hydra hands over to it.
"""

import hashlib
from datetime import datetime
from pathlib import Path

from omegaconf import OmegaConf

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


OmegaConf.register_new_resolver("r2m_run_dir", run_dir, replace=True)
OmegaConf.register_new_resolver("r2m_job_dir", job_dir, replace=True)
