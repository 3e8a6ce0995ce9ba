"""Writes the metrics of a run: always to files and the progress display, and to wandb and TensorBoard if requested."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from r2m_cli.console import on_terminal
from r2m_cli.errors import UserError
from r2m_cli.files.jsonl import cut_line, cut_rows, lines_of, replace_text, text_of, valid
from r2m_cli.files.run_folder import METRICS, PANEL, SAMPLES, STOP, SUMMARY, WARNINGS
from r2m_cli.monitor.boards import Board, TensorBoard, Wandb
from r2m_cli.monitor.progress import make_progress


class Sinks:
    """Writes the metrics, samples and warnings of a run. Only rank 0 has one; `with Sinks(...) as sinks:` also cleans up after a crash.

    Args:
        kinds: loggers in addition to the files: "wandb", "tensorboard".
        run_dir: the run's folder; created if missing. Receives `metrics.jsonl`, `samples.jsonl`, `warnings.log`,
            `summary.json`, and the loggers' own files.
        total_steps: steps of the complete run, for the progress.
        project, name, config: shown by wandb; TensorBoard shows `config`.
        start_step: first step that this process reports: 0 in a new run (row 0: before training), the last
            finished step + 1 in a resumed one. Rows of an earlier process from this step on are removed first, so
            that the files of a resumed run equal those of an uninterrupted one.
        quiet: print nothing (the files are still written).

    Raises:
        UserError: an unknown kind, or a logger whose package is not installed.
    """

    def __init__(
        self,
        kinds: list[str],
        run_dir: Path,
        total_steps: int,
        project: str | None = None,
        name: str | None = None,
        config: dict[str, Any] | None = None,
        start_step: int = 0,
        quiet: bool = False,
    ) -> None:
        if unknown := set(kinds) - {"wandb", "tensorboard"}:
            raise UserError(f"logger: {', '.join(sorted(unknown))} is unknown; choose wandb, tensorboard")
        self.run_dir = Path(run_dir)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        cut = [cut_rows(self.run_dir / file, start_step) for file in (METRICS, SAMPLES)]
        self._warnings = self.run_dir / WARNINGS
        if start_step == 0:
            self._warnings.unlink(missing_ok=True)
        cut_line(self._warnings)
        self._shown_warnings: set[str] = set()
        self._progress = make_progress(total_steps, start_step, quiet, (self.run_dir / STOP).exists)
        if on_terminal() and not quiet:
            (self.run_dir / PANEL).touch()
        for line in filter(None, cut):
            self.warn(line)
        self._boards: list[Board] = []
        self._sync = ""  # how to upload an offline wandb run
        if "wandb" in kinds:
            options = {"project": project, "name": name, "config": config}
            wandb = Wandb(self.run_dir, options, start_step, self.warn)
            self._boards.append(wandb)
            if wandb.sync:
                self._sync = f"wandb is offline; upload this run with: {wandb.sync}"
                self._progress.warn(self._sync, "note")
        if "tensorboard" in kinds:
            self._boards.append(TensorBoard(self.run_dir, config, start_step))

    def stage(self, name: str) -> None:
        """Show that stage `name` of a step begins."""
        self._progress.stage(name)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Report the numbers of `step`; NaN and infinity are written as null."""
        row = {key: valid(value) for key, value in values.items()}
        _append(self.run_dir / METRICS, [{"step": step, **row}])
        finite = {key: value for key, value in row.items() if value is not None}
        for board in self._boards:
            board.metrics(step, finite)
        self._progress.update(step, finite)

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Report prompts, responses and their rewards at `step`: one row each, any JSON values."""
        rows = [valid(row) for row in rows]
        _append(self.run_dir / SAMPLES, [{"step": step, **row} for row in rows])
        for board in self._boards:
            if rows:
                board.samples(step, rows)

    def warn(self, message: str, word: str = "warning") -> None:
        """Show `message` and append it to `warnings.log`, once per distinct message; `word` is "warning" or "note"."""
        line = " ".join(message.split())
        if line in self._shown_warnings:
            return
        self._shown_warnings.add(line)
        self._progress.warn(line, word)
        line = line.encode("utf-8", "backslashreplace").decode("utf-8")
        known = lines_of(self._warnings) if self._warnings.exists() else []
        if line not in known:  # a resumed run may repeat warnings from before
            with self._warnings.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def close(self, summary: Mapping[str, Any]) -> None:
        """End the run: write `summary.json` atomically and close the loggers."""
        summary = valid(summary)
        replace_text(self.run_dir / SUMMARY, json.dumps(summary, indent=2) + "\n")
        for board in self._boards:
            board.close(summary)
        self._boards = []
        self._end_progress()

    def _end_progress(self) -> None:
        self._progress.close()
        if self._sync:
            self._progress.warn(self._sync, "note")
            self._sync = ""
        (self.run_dir / PANEL).unlink(missing_ok=True)

    def __enter__(self) -> "Sinks":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        """Without a `close` (a crash): restore the terminal and mark the run as failed in the loggers."""
        self._end_progress()
        for board in self._boards:
            board.close(None)
        self._boards = []


def _append(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as file:  # closing it flushes it at once
        file.write(text_of(rows, allow_nan=False))
