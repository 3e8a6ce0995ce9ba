"""Where runs go, and which job of a sweep a folder is.

The two names that Hydra asks for by `${r2m_...}` in conf/train.yaml are registered by importing this module. A launcher's
worker process (joblib, submitit) imports it through `cli/sweep.py`, whose callback Hydra hands over to it.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from r2m_cli.files.run_folder import JOB

QUOTED = re.compile(r"""(['"])(?:\\.|(?!\1).)*\1""")
LONGEST = 120  # bytes of a sweep's folder name; file systems end at 255


@dataclass(frozen=True)
class Job:
    """A job of a sweep, as its folder's `.job` says."""

    number: int
    overrides: (
        tuple[str, ...] | None
    )  # as typed, swept ones with this job's value; None: an older folder, named by them


def run_dir(resume: str | None, task: str) -> str:
    """Where a single run goes: a resumed one into its own folder, a new one below outputs/."""
    return resume or f"outputs/{task}/{datetime.now():%Y-%m-%d_%H-%M-%S}"


def job_dir(number: int, sweep_dir: str, overrides: Sequence[str], fixed: Sequence[str]) -> str:
    """The folder of a sweep's job, below the sweep's: its number and what was swept, `0_method=rloo,seed=0`.

    The same overrides get the folder that they had when the sweep was run before, whatever their number is now.

    Args:
        overrides: all that were typed, with this job's values.
        fixed: keys that are the same in all jobs.
    """
    typed = tuple(str(text) for text in overrides)
    for folder in sorted(Path(sweep_dir).glob("*_*")) + [Path(sweep_dir, str(number))]:
        job = read_job(folder)
        if job is not None and job.overrides is not None and sorted(job.overrides) == sorted(typed):
            return folder.name
    swept = ",".join(f"{key}={_short(value)}" for key, value in map(parsed, typed) if key not in fixed)
    name = re.sub(r"[/\\'\"\x00-\x1f]", "_", swept).encode()[:LONGEST].decode(errors="ignore")
    return f"{number}_{name}" if name else str(number)


def parsed(override: str) -> tuple[str, str]:
    """(key, value) of an override, without its plus and, where all of the value stands in quotes, without these."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    key, _, value = override.lstrip("+").partition("=")
    return key, str(OverridesParser.create().parse_override(override).value()) if QUOTED.fullmatch(value) else value


def _short(value: str) -> str:
    """A value, of a path its last part."""
    return value.rstrip("/").rsplit("/", 1)[-1] or value


def read_job(folder: Path) -> Job | None:
    """What `.job` in a folder says; None where there is none, or one that is no job."""
    file = folder / JOB
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        return Job(found, None) if isinstance(found, int) else Job(int(found["number"]), tuple(found["overrides"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_job(folder: Path, job: Job) -> None:
    """Write `.job`."""
    (folder / JOB).write_text(json.dumps(asdict(job), ensure_ascii=False) + "\n", encoding="utf-8")


OmegaConf.register_new_resolver("r2m_run_dir", run_dir, replace=True)
OmegaConf.register_new_resolver("r2m_job_dir", job_dir, replace=True)
