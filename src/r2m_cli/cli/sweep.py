"""A sweep: the order in which its jobs are composed, and the table of its runs at the end.

Hydra calls `Sweep` (named in conf/train.yaml). The table is built from the files in the run folders, so it does not matter
whether this process or a launcher's worker elsewhere ran the jobs.
"""

import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write

from r2m_cli.config.check import APPENDED
from r2m_cli.files.jobs import Job, read_job, write_job  # it registers names that worker processes need
from r2m_cli.files.run_folder import ERROR, JOB, finished, remove_empty

REASON = 100  # characters shown of a reason in the sweep's last line
GROUP = re.compile(rf"\+({'|'.join(APPENDED)})=")

_under_way: Path | None = None  # folder of this process's sweep; None once its table is written


class JobFailed(Exception):
    """A job of a sweep failed and has printed why; Hydra continues with the next one."""

    def __init__(self, code: int, what: str):
        super().__init__(code, what)
        self.code = code
        self.what = what


class Said(JobReturn):
    """The result of a failed job: Hydra's, without the line that Hydra would print, because the job has printed why it failed."""

    def __getattribute__(self, name: str) -> Any:
        if name == "return_value":
            raise self._return_value
        return super().__getattribute__(name)


def failed(folder: Path, code: int, what: str) -> JobFailed:
    """The exception for a job of a sweep without a result; the reason is written into its folder."""
    (folder / ERROR).write_text(f"{what}\n", encoding="utf-8")
    return JobFailed(code, what)


def in_order(overrides: list[str]) -> list[str]:
    """The overrides with `+experiment=`, `+method=` and so on sorted as in APPENDED; all others keep their positions."""
    places = [i for i, text in enumerate(overrides) if GROUP.match(text)]
    sorted_ = sorted((overrides[i] for i in places), key=lambda t: APPENDED.index(GROUP.match(t)[1]))  # type: ignore[index]
    result = overrides.copy()
    for place, text in zip(places, sorted_):
        result[place] = text
    return result


class Sweep(Callback):
    """What Hydra calls at the start and the end of a sweep and of each of its jobs."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Move the groups of the sweep's file after those of the command line, and sort them.

        Sweepers compose a job from hydra.sweeper.params first and the command line second, so an experiment on the
        command line would overwrite the methods of +sweep=table4.
        """
        global _under_way
        _under_way = Path(config.hydra.sweep.dir) if config.task == "train" else None
        if wrong := impossible(config.hydra):
            print(f"r2m: error: {wrong}", file=sys.stderr)
            raise SystemExit(2)  # Hydra turns an Exception in a callback into a warning
        params = config.hydra.sweeper.get("params") or {}
        # Unresolved: data.seed=${seed} must be resolved in each job, not once for the sweep.
        typed: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
        given = {text.split("=", 1)[0] for text in typed}
        groups = [f"{key}={value}" for key, value in params.items() if str(key).startswith("+") and key not in given]
        with read_write(config), open_dict(config):
            for key in [key for key in params if str(key).startswith("+")]:
                del params[key]
            config.hydra.overrides.task = in_order([*typed, *groups])
            shared = ",".join(["sweep", *_fixed(typed)])
            config.hydra.overrides.hydra.append(f"hydra.job.config.override_dirname.exclude_keys=[{shared}]")

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Print which job of the sweep this is."""
        if in_a_sweep(config.hydra):
            folder = Path(config.hydra.runtime.output_dir)
            number, name = config.hydra.job.num, config.hydra.sweep.subdir
            (folder / ERROR).unlink(missing_ok=True)
            if config.get("resume") is None:  # a resumed run has its folder elsewhere, and may belong to another sweep
                write_job(folder, Job(number, tuple(config.hydra.overrides.task)))
            print(f"r2m: job {number} of the sweep: {name}", file=sys.stderr, flush=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Keep Hydra from printing a failure that the job has already reported."""
        if isinstance(job_return._return_value, JobFailed):
            job_return.__class__ = Said

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Write and print the table."""
        close()


def _fixed(typed: list[str]) -> list[str]:
    """Keys and groups of the overrides that have the same value in every job."""
    parser = OverridesParser.create()
    read = [parser.parse_override(text) for text in typed]
    return [override.key_or_group for override in read if not override.is_sweep_override()]


def impossible(hydra: Any) -> str:
    """The error for settings on which Hydra's plugins would crash: numbers below one, an unknown direction. Empty if none."""
    if hydra.launcher.get("n_jobs") == 0:
        return "hydra.launcher.n_jobs=0: must be at least 1, or -1 for all processors"
    for name in ("n_trials", "n_jobs", "max_batch_size"):
        value = hydra.sweeper.get(name)
        if isinstance(value, int) and value < 1:
            return f"hydra.sweeper.{name}={value}: must be at least 1"
    for direction in _listed(hydra.sweeper.get("direction")):
        if direction not in ("minimize", "maximize"):
            return f"hydra.sweeper.direction={direction}: must be minimize or maximize"
    return ""


def _listed(value: Any) -> list[Any]:
    """A list of the value: null gives none, a single value gives one."""
    return [] if value is None else list(value) if isinstance(value, ListConfig) else [value]


def in_a_sweep(hydra: Any) -> bool:
    """Whether the job with this Hydra configuration is part of a sweep."""
    return not OmegaConf.is_missing(hydra.job, "num")


def close() -> None:
    """End the sweep of this process, if there is one: write its table, even if the sweep was interrupted. Never raises."""
    global _under_way
    folder, _under_way = _under_way, None
    if folder is None or not folder.is_dir():
        return
    try:
        tabulate(folder)
    except Exception as error:  # the runs matter more: the table can be built again
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        print(f"r2m: no table of this sweep ({reason}); try r2m report {shlex.quote(str(folder))}", file=sys.stderr)


def tabulate(folder: Path) -> None:
    """Write table.csv, table.md, report.png and report.html of the sweep's finished runs into its folder, and print the table.

    Rows follow the order of the jobs, with all seeds of a method together. Runs without a result are named in one line.

    Raises:
        UserError: a finished run has a broken file.
    """
    from r2m_cli.reporting import page, picture, table
    from r2m_cli.reporting.run_names import job_names
    from r2m_cli.reporting.runs import load_runs

    found = {path.parent: read_job(path.parent) for path in folder.rglob(JOB)}
    jobs = sorted((job for job in found if found[job] is not None), key=lambda job: (found[job].number, str(job)))  # type: ignore[union-attr]
    ended = [job for job in jobs if finished(job)]
    if ended:
        runs = load_runs(ended)
        names = dict(zip(jobs, job_names(jobs)))
        if len(set(names.values())) > 1:  # otherwise only the seeds differ, and the report's own names will do
            runs = [replace(run, name=names[job]) for run, job in zip(runs, ended)]
        first = {run.name: number for number, run in reversed(list(enumerate(runs)))}
        runs.sort(key=lambda run: first[run.name])
        rows = table.summarise(runs)
        table.write(rows, folder / "table.csv")
        table.show(rows)
        picture.draw(runs, folder / "report.png")
        page.write(page.render(runs), folder / "report.html")
        print(f"r2m: wrote {folder}: report.html, report.png, table.csv, table.md", flush=True)
        print(f"r2m: next: open {folder}/report.html in a browser", flush=True)
    unfinished = {job: str(job.relative_to(folder)) for job in jobs if job not in ended}
    for line in (_best(folder), _without_result(unfinished)):
        if line:
            print(f"r2m: {line}", file=sys.stderr, flush=True)
    if not jobs:  # a typo noticed before the first job must not litter multirun/
        (folder / "multirun.yaml").unlink(missing_ok=True)
        remove_empty(folder.absolute())


def _best(folder: Path) -> str:
    """The best parameters found by an optimising sweeper, in one line."""
    results = folder / "optimization_results.yaml"
    if not results.is_file():
        return ""
    found: Any = OmegaConf.to_container(OmegaConf.load(results))
    best = found.get("best_params") or found.get("best_evaluated_params")
    return "best: " + ", ".join(f"{key}={value}" for key, value in best.items()) if best else ""


def _without_result(jobs: dict[Path, str]) -> str:
    """One line that names the jobs without a result, grouped by reason."""
    reasons: dict[str, list[str]] = {}
    for job, name in jobs.items():
        said = (job / ERROR).read_text(encoding="utf-8").splitlines() if (job / ERROR).is_file() else []
        reason = said[0] if said else "not finished"
        reasons.setdefault(reason if len(reason) <= REASON else f"{reason[:REASON]}...", []).append(name)
    named = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
    return f"{len(jobs)} of the sweep's runs have no result ({named})" if jobs else ""
