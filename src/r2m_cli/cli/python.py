"""The words of the command as functions, for scripts and notebooks; `r2m_cli` offers them.

They take the overrides exactly as on the command line, use the same code and print the same lines. What they return reads
its files only when a property is used, so it can also be created from a folder: `Run("outputs/my_run")`.
"""

import os
import signal
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r2m_cli.cli.explain import one_line
from r2m_cli.cli.main import run_word
from r2m_cli.errors import UserError
from r2m_cli.files.cache import read_json
from r2m_cli.files.jsonl import row_of
from r2m_cli.files.run_folder import ANALYSIS, CONFIG, EVALUATION, FIT, METRICS, SAMPLES, SUMMARY

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]

    from r2m_cli.config.schema import Config

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class _Folder:
    """The folder that a command filled. Every property raises UserError if its file is missing or broken."""

    folder: Path

    def __init__(self, folder: PathLike) -> None:
        object.__setattr__(self, "folder", Path(folder).absolute())

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def config(self) -> "Config":
        """The full configuration, every key as an attribute: `config.ppo.beta`."""
        from r2m_cli.config.check import typed
        from r2m_cli.files.yaml_files import read_yaml

        config = typed(read_yaml(self._file(CONFIG)))
        return config  # type: ignore[no-any-return]

    def _file(self, name: str) -> Path:
        file = self.folder / name
        if not file.is_file():
            raise UserError(
                f"{file}: no such file; is {self.folder} the right folder, and has the command that fills it finished?"
            )
        return file


class Run(_Folder):
    """A training run, finished or not."""

    @property
    def summary(self) -> dict[str, Any]:
        """The final values of a finished run, as in summary.json."""
        return read_json(self._file(SUMMARY))

    @property
    def metrics(self) -> "pd.DataFrame":
        """metrics.jsonl: a row per step (the index; 0 is before training), a column per metric, NaN where it was not measured.

        docs/metrics.md explains each metric.
        """
        from r2m_cli.reporting.runs import read_metrics

        return read_metrics(self._file(METRICS))

    @property
    def samples(self) -> "pd.DataFrame":
        """samples.jsonl: a row per sampled response, with its step, prompt (messages), response and rewards."""
        import pandas as pd

        from r2m_cli.reporting.lines import read_lines

        return pd.DataFrame(read_lines(self._file(SAMPLES), row_of, "a sample with a step"))


class Model(_Folder):
    """A fitted policy or reward model: a Hugging Face folder."""

    @property
    def metrics(self) -> dict[str, Any]:
        """How well it fits, as in fit.json."""
        return read_json(self._file(FIT))


class Evaluation(_Folder):
    """The measurements of an evaluation."""

    @property
    def metrics(self) -> "pd.DataFrame":
        """A row per metric (the index), with `value`, and `low` and `high` of its 95 % interval, NaN where it has none."""
        import pandas as pd

        found = read_json(self._file(EVALUATION))
        values = {name: value for name, value in found.items() if name not in ("intervals", "notes")}
        ends = {name: found["intervals"].get(name) or (None, None) for name in values}
        rows = [(value, *ends[name]) for name, value in values.items()]
        return pd.DataFrame(rows, index=pd.Index(values, name="metric"), columns=["value", "low", "high"], dtype=float)

    @property
    def notes(self) -> list[str]:
        """The notes that the command printed with the numbers."""
        return list(read_json(self._file(EVALUATION))["notes"])


class Analysis(_Folder):
    """The results of an analysis."""

    @property
    def results(self) -> dict[str, Any]:
        """analysis.json: the numbers of each figure, nested; docs/analyze.md defines them."""
        return read_json(self._file(ANALYSIS))


def train(overrides: Sequence[str] = (), *, run_dir: PathLike | None = None, config_dir: PathLike | None = None) -> Run:
    """Optimise a policy against a reward model: `r2m train`.

    Args:
        overrides: as on the command line, one string each: `["feedback=r2m_safe", "train.steps=20"]`.
        run_dir: the run's folder, instead of `hydra.run.dir`; by default outputs/train/ and the time.
        config_dir: a folder of configuration files of your own (`--config-dir`).

    Raises:
        UserError: bad input; the message is the line that the command prints.
        KeyboardInterrupt: Ctrl-C. After the first one, the step finishes and a checkpoint is saved; a second one stops at once.
        r2m_cli.launch.launch.RankFailed: a rank of engine=zero crashed or was killed.
    """
    return Run(_run("train", overrides, config_dir, run_dir))


def sft(overrides: Sequence[str] = (), *, output: PathLike | None = None, config_dir: PathLike | None = None) -> Model:
    """Fit the policy's starting point on demonstrations: `r2m sft`.

    Args:
        overrides, config_dir: as in `train`, with the same errors.
        output: the model's folder; by default the cache that `train` looks in.
    """
    return Model(_run("sft", overrides, config_dir, output=output))


def reward(
    overrides: Sequence[str] = (), *, output: PathLike | None = None, config_dir: PathLike | None = None
) -> Model:
    """Fit a reward model on labelled pairs: `r2m reward`. Arguments and errors as in `sft`."""
    return Model(_run("reward", overrides, config_dir, output=output))


def evaluate(
    overrides: Sequence[str] = (), *, run_dir: PathLike | None = None, config_dir: PathLike | None = None
) -> Evaluation:
    """Score a policy on fixed prompts and a reward model on held-out pairs: `r2m evaluate`.

    Arguments and errors as in `train`; `[f"run={run.folder}"]` evaluates a finished run.
    """
    return Evaluation(_run("evaluate", overrides, config_dir, run_dir))


def analyze(
    overrides: Sequence[str] = (), *, run_dir: PathLike | None = None, config_dir: PathLike | None = None
) -> Analysis:
    """Analyse what hidden states reveal about preference, reward and reward hacking, and curves of runs: `r2m analyze`.

    Arguments and errors as in `train`.
    """
    return Analysis(_run("analyze", overrides, config_dir, run_dir))


def report(runs: Iterable[PathLike], out: PathLike = "report.html") -> Path:
    """Write a page, a picture and a table of runs, and return the page's path: `r2m report`.

    Args:
        runs: runs, run folders, or folders with run folders below them.
        out: the page (.html) or the picture (.png, .pdf, .svg); the other one and the table are written next to it.

    Raises:
        UserError: a folder that holds no run, or a broken file in one.
    """
    folders = [os.fspath(run) for run in ([runs] if isinstance(runs, str | os.PathLike) else runs)]
    return _call("report", [*map(os.path.abspath, folders), f"out={os.fspath(out)}"]).absolute()


def _run(
    word: str,
    overrides: Sequence[str],
    config_dir: PathLike | None,
    run_dir: PathLike | None = None,
    output: PathLike | None = None,
) -> Path:
    if isinstance(overrides, str):
        raise UserError(f"overrides={overrides!r}: pass a list of strings, [{overrides!r}]")
    for text in overrides:
        if text.startswith(("-", "+sweep=")) or text == "hydra.mode=MULTIRUN":
            raise UserError(
                f"{text}: a function of r2m_cli takes key=value and runs once; call it in a loop, or sweep with "
                "`r2m train -m` on the command line"
            )
    arguments = [] if config_dir is None else ["--config-dir", os.fspath(config_dir)]
    places = {"hydra.run.dir": run_dir, "output": output}
    named = [f"{key}={os.fspath(place)}" for key, place in places.items() if place is not None]
    return _call(word, [*arguments, *overrides, *named])


def _call(word: str, arguments: list[str]) -> Path:
    if threading.current_thread() is not threading.main_thread():
        raise UserError(
            f"r2m_cli.{word}: Ctrl-C needs the main thread; call it there, or start `r2m {word}` as a process"
        )
    try:
        filled = run_word(word, arguments)
    except SystemExit as end:
        if end.code == 128 + signal.SIGINT:
            raise KeyboardInterrupt from None
        raise
    except Exception as error:
        said = one_line(error, word)
        if said is None or isinstance(error, UserError):
            raise
        raise UserError(said) from error
    assert filled is not None, "a single run returns its folder"
    return filled
