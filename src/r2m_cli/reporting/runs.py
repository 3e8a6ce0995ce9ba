"""Read finished or running runs from their folders."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped, unused-ignore]
from omegaconf import DictConfig, OmegaConf

from r2m_cli.config.old_keys import translated
from r2m_cli.console import tell
from r2m_cli.errors import UserError
from r2m_cli.files.cache import read_json
from r2m_cli.files.jobs import read_job
from r2m_cli.files.jsonl import row_of
from r2m_cli.files.regular import require_regular
from r2m_cli.files.run_folder import CONFIG, METRICS, SAMPLES, SUMMARY
from r2m_cli.files.yaml_files import read_yaml
from r2m_cli.monitor.catalogue import RENAMED
from r2m_cli.reporting.lines import Row, by_step, read_lines
from r2m_cli.reporting.run_names import names_of

LARGEST = 1e100  # a larger number cannot be a measurement, and its square may overflow


@dataclass(frozen=True)
class Run:
    """One run. Runs that differ only in their seed share a `name`."""

    path: Path
    name: str
    config: dict[str, Any]  # nested, as in config.yaml
    metrics: pd.DataFrame  # index: step, 0 is before training; columns: the catalogue's names; NaN: not measured
    summary: dict[str, Any]  # {} while the run is going

    @property
    def seed(self) -> Any:
        """The run's seed, or None if its config has none."""
        return self.config.get("seed")

    def has(self, name: str) -> bool:
        """Whether metric `name` was measured at all."""
        return name in self.metrics and bool(self.metrics[name].notna().any())

    @cached_property
    def samples(self) -> dict[int, list[Row]]:
        """The rows of samples.jsonl by step."""
        return by_step(self.path / SAMPLES)

    def curve(self, name: str) -> pd.Series:
        """Metric against step: `eval/<name>`, measured on the fixed prompts, if there is one; otherwise the rollouts' metric,
        smoothed by a centred mean over a twentieth of the run. Empty if neither was measured.
        """
        if self.has(f"eval/{name}"):
            return self.metrics[f"eval/{name}"].dropna()
        rollout_name = {"length": "completions/mean_length"}.get(name, name)
        if not self.has(rollout_name):
            return pd.Series(dtype=float)
        values = self.metrics[rollout_name].dropna()
        return values.rolling(max(1, len(values) // 20), center=True, min_periods=1).mean()


def load_runs(folders: Iterable[str | Path]) -> list[Run]:
    """Load every run in `folders`: each is a run folder, or has run folders anywhere below it (a multirun).

    If there are several runs, those without a step yet are left out and reported on stderr.

    Raises:
        UserError: no folder is given, or one is missing, holds no run, or holds a damaged one.
    """
    paths = list(dict.fromkeys(path for folder in folders for path in _run_folders(Path(folder))))
    waiting = [path for path in paths if _is_empty(path / METRICS)]
    if waiting and len(waiting) < len(paths):
        tell(f"left out, no step yet: {', '.join(map(str, waiting))}")
        paths = [path for path in paths if path not in waiting]
    if not paths:
        raise UserError("runs: no run folder is given; for example: r2m report outputs/vanilla outputs/r2m")
    configs = [_read_config(path / CONFIG) for path in paths]
    names = names_of(paths, configs)
    return [
        Run(path, name, config, read_metrics(path / METRICS), _read_summary(path / SUMMARY))
        for path, name, config in zip(paths, names, configs, strict=True)
    ]


def _run_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"runs: {folder} is not a folder; give the folder of a run, or of a multirun")
    if (folder / METRICS).exists():
        return [folder.resolve()]
    found = sorted((file.parent.resolve() for file in folder.rglob(METRICS)), key=_place)
    if not found:
        raise UserError(f"runs: {folder} holds no run (no metrics.jsonl in it or below); is it the hydra.run.dir?")
    return found


def _place(run: Path) -> tuple[str, int, str]:
    """Sort key of a run: a sweep's jobs come in the order of their numbers, at the position of the sweep's folder."""
    job = read_job(run)
    if job is None:
        return str(run), 0, ""
    root = next((folder for folder in run.parents if (folder / "multirun.yaml").is_file()), run.parent)
    return str(root), job.number, str(run)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"runs: {path} is missing, so {path.parent} is not a run folder")
    read = read_yaml(path)
    if not isinstance(read, DictConfig):
        raise UserError(f"{path}: not a configuration; copy it again from the run")
    config: Any = OmegaConf.to_container(read, resolve=False)
    return translated(config)


def read_metrics(path: Path) -> pd.DataFrame:
    def numbers(line: bytes) -> dict[str, Any]:
        row = row_of(line)
        return {RENAMED.get(name, name): finite(value) for name, value in row.items()} | {"step": row["step"]}

    rows = read_lines(path, numbers, "a JSON object with a step")
    if not rows:
        raise UserError(f"{path}: no step yet; wait for the run's first step")
    return pd.DataFrame(rows).drop_duplicates("step", keep="last").set_index("step").sort_index()


def finite(value: Any) -> float:
    """A number of a run's file as a float; NaN for everything else, including numbers too large for a float."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > LARGEST:
        return math.nan
    return float(value)


def _read_summary(path: Path) -> dict[str, Any]:
    return {} if _is_empty(path) else read_json(path)  # an empty file is left after a power cut


def _is_empty(path: Path) -> bool:
    require_regular(path)
    return not path.exists() or not path.read_bytes().strip()
