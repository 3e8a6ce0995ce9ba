"""Loggers in addition to a run's files: wandb and TensorBoard.

Only this file uses them; each is imported only when a run needs it.
"""

import inspect
import json
import os
import shlex
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from r2m_cli.errors import UserError
from r2m_cli.files.jsonl import valid
from r2m_cli.files.run_folder import TENSORBOARD


class Board(Protocol):
    """Shows the metrics and samples of a run while it runs."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None: ...
    def samples(self, step: int, rows: list[dict[str, Any]]) -> None: ...
    def close(self, summary: Mapping[str, Any] | None) -> None: ...  # None: the run failed


class TensorBoard:
    """Event files in the run's folder."""

    def __init__(self, run_dir: Path, config: dict[str, Any] | None, start_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError("logger: tensorboard is not installed; pip install 'r2m[tensorboard]'") from error
        self.writer = SummaryWriter(str(run_dir / TENSORBOARD), purge_step=start_step or None)
        if config and start_step == 0:
            self.writer.add_text("config", f"```json\n{json.dumps(valid(config), indent=2)}\n```")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)
        self.writer.flush()

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        texts = ["\n\n".join(f"**{key}**: {value}" for key, value in row.items()) for row in rows[:8]]
        self.writer.add_text("samples", "\n\n---\n\n".join(texts), step)

    def close(self, summary: Mapping[str, Any] | None) -> None:
        self.writer.close()


class Wandb:
    """Online if the user is logged in and the server answers, otherwise offline. Never prompts, never waits long."""

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
        if start_step > 0 and latest.exists():  # continue the same wandb run
            options |= {"id": latest.resolve().name.rsplit("-", 1)[-1], "resume": "allow"}
        mode = self._mode(warn)
        try:
            self.run = wandb.init(mode=mode, settings=wandb.Settings(**settings), **options)
        except Exception as error:  # the network or the server; the training itself is fine
            if mode != "online" or isinstance(error, wandb.errors.UsageError):
                raise UserError(f"logger=wandb: {error}") from error
            warn(f"wandb: {error}; logging offline")
            self.run = wandb.init(mode="offline", settings=wandb.Settings(**settings), **options)
        # The command that uploads an offline run; "" if the run is online or wandb is disabled.
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
