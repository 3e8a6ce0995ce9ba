"""Where the numbers of a run go: files always; a progress line; wandb and TensorBoard when asked.

The only file that knows wandb and TensorBoard; both are imported when a run asks for them, not before.
"""

import inspect
import json
import math
import os
import shlex
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from r2m_cli.console import on_terminal
from r2m_cli.errors import UserError
from r2m_cli.files.jsonl import cut_line, cut_rows, lines_of, replace_text, text_of
from r2m_cli.files.run_folder import METRICS, PANEL, SAMPLES, STOP, SUMMARY, TENSORBOARD, WARNINGS
from r2m_cli.monitor.progress import make_progress


class Sinks:
    """Writes what a run reports. Rank 0 holds one; `with Sinks(...) as sinks:` also tidies up after a crash.

    Args:
        kinds: boards beside the files, of "wandb" and "tensorboard".
        run_dir: the run's folder; made if missing. Gets `metrics.jsonl`, `samples.jsonl`, `warnings.log`,
            `summary.json`, and the boards' own files.
        total_steps: steps of the whole run, for the progress.
        project, name, config: shown by wandb; TensorBoard shows `config`.
        start_step: first step that this process reports: 0 in a fresh run (row 0: before training), the last
            step done + 1 in a resumed one. Rows of an earlier process from this step on are cut off first, so
            that the files of a resumed run equal those of an uninterrupted one.
        quiet: print nothing (the files are written all the same).

    Raises:
        UserError: an unknown kind, or a board whose package is not installed.
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
        self._boards: list[_Board] = []
        self._sync = ""  # how to upload what wandb has kept offline
        if "wandb" in kinds:
            options = {"project": project, "name": name, "config": config}
            wandb = _Wandb(self.run_dir, options, start_step, self.warn)
            self._boards.append(wandb)
            if wandb.sync:
                self._sync = f"wandb is offline; upload this run with: {wandb.sync}"
                self._progress.warn(self._sync, "note")
        if "tensorboard" in kinds:
            self._boards.append(_TensorBoard(self.run_dir, config, start_step))

    def stage(self, name: str) -> None:
        """Show that the stage `name` of a step begins."""
        self._progress.stage(name)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Report the numbers of `step`; NaN and infinity are written as null."""
        row = {key: _valid(value) for key, value in values.items()}
        _append(self.run_dir / METRICS, [{"step": step, **row}])
        finite = {key: value for key, value in row.items() if value is not None}
        for board in self._boards:
            board.metrics(step, finite)
        self._progress.update(step, finite)

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Report prompts, responses and their rewards at `step`: one row each, any JSON values."""
        rows = [_valid(row) for row in rows]
        _append(self.run_dir / SAMPLES, [{"step": step, **row} for row in rows])
        for board in self._boards:
            if rows:
                board.samples(step, rows)

    def warn(self, message: str, word: str = "warning") -> None:
        """Show `message` and append it to `warnings.log`, once per distinct message; `word` may make it a mere note."""
        line = " ".join(message.split())
        if line in self._shown_warnings:
            return
        self._shown_warnings.add(line)
        self._progress.warn(line, word)
        line = line.encode("utf-8", "backslashreplace").decode("utf-8")
        known = lines_of(self._warnings) if self._warnings.exists() else []
        if line not in known:  # a resumed run meets the old warnings again
            with self._warnings.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def close(self, summary: Mapping[str, Any]) -> None:
        """End the run: write `summary.json` (all of it or none) and close the boards."""
        summary = _valid(summary)
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
        """Without a `close` (a crash): give the terminal back and let the boards say that the run failed."""
        self._end_progress()
        for board in self._boards:
            board.close(None)
        self._boards = []


# ---- files ----


def _append(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as file:  # closed, hence flushed, at once
        file.write(text_of(rows, allow_nan=False))


def _valid(value: Any) -> Any:
    """`value` as JSON allows it: numbers of torch or numpy become Python's, non-finite ones None."""
    if isinstance(value, Mapping):
        return {str(key): _valid(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_valid(item) for item in value]
    if value is None or isinstance(value, str | bool):
        return value
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int) else str(value)


# ---- boards ----


class _Board(Protocol):
    def metrics(self, step: int, values: Mapping[str, float]) -> None: ...
    def samples(self, step: int, rows: list[dict[str, Any]]) -> None: ...
    def close(self, summary: Mapping[str, Any] | None) -> None: ...  # None: the run failed


class _TensorBoard:
    def __init__(self, run_dir: Path, config: dict[str, Any] | None, start_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError("logger: tensorboard is not installed; pip install 'r2m[tensorboard]'") from error
        self.writer = SummaryWriter(str(run_dir / TENSORBOARD), purge_step=start_step or None)
        if config and start_step == 0:
            self.writer.add_text("config", f"```json\n{json.dumps(_valid(config), indent=2)}\n```")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)
        self.writer.flush()

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        texts = ["\n\n".join(f"**{key}**: {value}" for key, value in row.items()) for row in rows[:8]]
        self.writer.add_text("samples", "\n\n---\n\n".join(texts), step)

    def close(self, summary: Mapping[str, Any] | None) -> None:
        self.writer.close()


class _Wandb:
    """Online when there is a login and the server answers, else offline. Never asks, never waits long."""

    def __init__(self, run_dir: Path, options: dict[str, Any], start_step: int, warn: Callable[[str], None]):
        try:
            import wandb
        except ImportError as error:
            raise UserError("logger: wandb is not installed; pip install wandb") from error
        self.wandb = wandb
        settings: dict[str, Any] = {"silent": True, "console": "off", "init_timeout": 20}
        settings |= {"finish_timeout": 120} if "finish_timeout" in wandb.Settings.model_fields else {}
        options = {**options, "dir": str(run_dir)}
        latest = run_dir / "wandb" / "latest-run"
        if start_step > 0 and latest.exists():  # go on in the same wandb run
            options |= {"id": latest.resolve().name.rsplit("-", 1)[-1], "resume": "allow"}
        mode = self._mode(warn)
        try:
            self.run = wandb.init(mode=mode, settings=wandb.Settings(**settings), **options)
        except Exception as error:  # the network or the server; the training itself is fine
            if mode != "online" or isinstance(error, wandb.errors.UsageError):
                raise UserError(f"logger=wandb: {error}") from error
            warn(f"wandb: {error}; logging offline")
            self.run = wandb.init(mode="offline", settings=wandb.Settings(**settings), **options)
        # The command that uploads the run; "" for one that is online, or switched off.
        self.sync = shlex.join(["wandb", "sync", str(Path(self.run.dir).parent)]) if self.run.offline else ""

    def _mode(self, warn: Callable[[str], None]) -> Any:
        if (mode := os.environ.get("WANDB_MODE", "online")) != "online":
            return mode
        if not (os.environ.get("WANDB_API_KEY") or self._logged_in()):
            return "offline"
        url = self.wandb.setup().settings.base_url
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except urllib.error.HTTPError:
            pass  # it answers
        except OSError as error:
            warn(f"wandb: {url} does not answer ({error}); logging offline")
            return "offline"
        return "online"

    def _logged_in(self) -> bool:
        if "prompt" in inspect.signature(self.wandb.login).parameters:
            return bool(self.wandb.login(prompt=False))
        return bool(self.wandb.api.api_key)  # older wandb

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        cells = [[json.dumps(cell) if isinstance(cell, list | dict) else cell for cell in row.values()] for row in rows]
        table = self.wandb.Table(columns=list(rows[0]), data=cells)
        self.run.log({"samples": table}, step=step)

    def close(self, summary: Mapping[str, Any] | None) -> None:
        if summary is not None:
            self.run.summary.update(dict(summary))
        self.run.finish(exit_code=0 if summary is not None else 1)
