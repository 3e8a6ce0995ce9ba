"""The names of runs in tables, legends and pages: the settings that distinguish them, without seeds."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from r2m_cli.files.jobs import parsed, read_job

# Keys in which repetitions of a run differ, or that do not concern the method: never part of a label.
IGNORED = re.compile(r"(seed|data\.seed|resume|run|output|sweep|train\.stop_at|(checkpoint|logger|hydra)\..*)$")
FITTED = re.compile(r"[^' ]*/(policy|reward)-[0-9a-f]{12}\b")
SEED_IN_NAME = re.compile(r"(^|(?<=/)|[,_\-./])((seed|world)[=_-]?|s)\d+(?=$|[,_\-/])")
LONG_NUMBER = re.compile(r"(?<==)\d+\.\d{5,}(e[-+]?\d+)?")
LONG_PATH = re.compile(r"(?<==).*/(?=[^/]+$)")


def names_of(paths: list[Path], configs: list[dict[str, Any]]) -> list[str]:
    """A job of a sweep is named by its overrides, any other run by its path below the common parent folder; seeds and parts that
    all names share are left out. If no word remains (only a date or a job number), the differences between the configurations
    are the name.
    """
    depth = len(_common_parent(paths).parts) if len(set(paths)) > 1 else None
    named = bare([_parts(path, depth) for path in paths])
    if all(re.search("[A-Za-z]", name) for name in named):
        return named
    differences = _differences(configs)
    shared = _common_parent(paths).name  # the only name left if just the seeds differ
    return [text or name or shared for text, name in zip(differences, named, strict=True)]


def job_names(jobs: list[Path]) -> list[str]:
    """The names of all jobs of a sweep, from their overrides alone, whether they have finished or not."""
    return bare([_parts(job, None) for job in jobs])


def _parts(path: Path, depth: int | None) -> list[str]:
    """Parts of a run's possible name: the folders below the first `depth` ones (None: only its own), or a job's overrides."""
    job = read_job(path)
    if job is None or job.overrides is None:
        name = path.name if depth is None else "/".join(path.parts[depth:])
        name = name.encode("utf-8", "replace").decode("utf-8")  # a folder's name may not be valid text
        return [part.strip() for part in SEED_IN_NAME.sub("", name).strip("/,_-.").split(",")]
    above = [] if depth is None or len(path.parts) - depth < 2 else ["/".join(path.parts[depth:-1])]
    return above + [f"{key}={value}" for key, value in map(parsed, job.overrides) if not IGNORED.match(key)]


def bare(parts: list[list[str]]) -> list[str]:
    """Short names from parts like `debug=quick`, `method=rloo`, `ppo.lr=0.00012345678`. Common parts are left out, a method is
    written without its key, and long numbers are rounded and paths shortened to their last part if different names stay
    different.
    """
    telling = [
        [part for part in some if part.startswith("method=") or any(part not in others for others in parts)]
        for some in parts
    ]
    if all(telling):
        parts = telling
    full = [", ".join(part.removeprefix("method=") for part in some) for some in parts]
    for shorten in (
        lambda part: LONG_NUMBER.sub(lambda number: f"{float(number[0]):.3g}", part),
        lambda part: LONG_PATH.sub("", part),
    ):
        shorter = [[shorten(part) for part in some] for some in parts]
        names = [", ".join(part.removeprefix("method=") for part in some) for some in shorter]
        if len(set(names)) == len(set(full)):
            parts, full = shorter, names
    return full


def _common_parent(paths: list[Path]) -> Path:
    first = paths[0].parent
    return next(parent for parent in (first, *first.parents) if all(p.is_relative_to(parent) for p in paths))


def _differences(configs: list[dict[str, Any]]) -> list[str]:
    """For each configuration, the values of the smallest set of keys that distinguishes as many configurations as all keys."""
    flat = [{key: plain(value) for key, value in flatten(c) if not IGNORED.match(key)} for c in configs]
    keys = [key for key in dict.fromkeys(k for f in flat for k in f) if len({f.get(key) for f in flat}) > 1]

    def groups(keys: list[str]) -> int:
        return len({tuple(f.get(key) for key in keys) for f in flat})

    for key in reversed(keys.copy()):
        without = [other for other in keys if other != key]
        if groups(without) == groups(keys):
            keys = without
    return [", ".join(f"{key.removesuffix('.kind')}={f.get(key, '-')}" for key in keys) for f in flat]


def plain(value: Any) -> str:
    """A value as text. The cache path of a model fitted for the run is left out: other keys already determine it."""
    return FITTED.sub("fitted", str(value))


def flatten(config: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """(dotted key, value) of a nested configuration."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
