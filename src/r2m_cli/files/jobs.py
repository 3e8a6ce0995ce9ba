"""The folders of runs and of the jobs of a sweep.

Importing this module registers the two resolvers `${r2m_...}` of conf/train.yaml. A launcher's worker process (joblib,
submitit) imports it through `cli/sweep.py`, because Hydra passes that module's callback to the worker.
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
LONGEST = 120  # bytes of the name of a job's folder; file systems allow 255


@dataclass(frozen=True)
class Job:
    """A job of a sweep, as stored in `.job` of its folder."""

    number: int
    overrides: (
        tuple[str, ...] | None
    )  # as typed, swept ones with this job's value; None: a folder of an older version, which stores only the number


def run_dir(resume: str | None, task: str) -> str:
    """The folder of a single run: a resumed run keeps its own, a new one goes below outputs/."""
    return resume or f"outputs/{task}/{datetime.now():%Y-%m-%d_%H-%M-%S}"


def job_dir(number: int, sweep_dir: str, overrides: Sequence[str], fixed: Sequence[str]) -> str:
    """The folder name of a sweep's job: its number and the swept keys, `0_method=rloo,seed=0`.

    The same overrides get the same folder when the sweep is run again, even if their number has changed.

    Args:
        overrides: all overrides that were typed, with this job's values.
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
    """(key, value) of an override, without its plus, and without the quotes around the value if it is all in quotes."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    key, _, value = override.lstrip("+").partition("=")
    return key, str(OverridesParser.create().parse_override(override).value()) if QUOTED.fullmatch(value) else value


def _short(value: str) -> str:
    """The value; for a path, its last part."""
    return value.rstrip("/").rsplit("/", 1)[-1] or value


def read_job(folder: Path) -> Job | None:
    """The job stored in `.job` of a folder; None if the file is missing or invalid."""
    file = folder / JOB
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        return Job(found, None) if isinstance(found, int) else Job(int(found["number"]), tuple(found["overrides"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_job(folder: Path, job: Job) -> None:
    """Write `.job` into `folder`."""
    (folder / JOB).write_text(json.dumps(asdict(job), ensure_ascii=False) + "\n", encoding="utf-8")


OmegaConf.register_new_resolver("r2m_run_dir", run_dir, replace=True)
OmegaConf.register_new_resolver("r2m_job_dir", job_dir, replace=True)
