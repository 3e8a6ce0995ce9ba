"""Saves the state of a fit that is stopped or killed, so that the same command can continue it.

The state is stored in the cache, separately from the model's folder, which appears complete or not at all. Its name depends
on everything that affects the fit. It is removed when the fit is done. A continued fit gives bit for bit the same model as
an uninterrupted one.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from time import monotonic

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from r2m_cli.config.schema import Config
from r2m_cli.distributed import comm
from r2m_cli.distributed.engine import Engine
from r2m_cli.errors import UserError
from r2m_cli.files.cache import cache_dir, key_of
from r2m_cli.fitting.cached import policy_cache, reward_cache
from r2m_cli.monitor import stop

EVERY = 120.0  # minimum seconds between two saves
SHARE = 20  # and this many times the duration of the last save
ELSEWHERE = ("node_rank", "rendezvous", "timeout")  # keys of engine that do not affect the result


class Unfinished:
    """The saved parts of one fit."""

    def __init__(self, folder: Path | None, run_dir: Path) -> None:
        """`folder`: None saves nothing. `run_dir`: the folder in which Ctrl-C leaves its mark."""
        self.folder, self.run_dir = folder, run_dir

    def part(self, name: str, rows: object) -> "Part":
        """A part of the fit that uses these rows (JSON-serialisable); other rows give another part."""
        return Part(None if self.folder is None else self.folder / f"{name}-{key_of(rows)}", self.run_dir)


@contextmanager
def unfinished(config: Config, run_dir: Path) -> Iterator[Unfinished]:
    """The saved state of this configuration's fit; it is removed at the end of the block unless that raises. Collective.

    Nothing is saved on several machines, because their caches may differ, or while another process runs the same fit.
    """
    lock = folder = None
    if comm.is_main() and config.engine.num_nodes == 1:
        cached = policy_cache(config) if config.task == "sft" else reward_cache(config)
        engine = {key: value for key, value in asdict(config.engine).items() if key not in ELSEWHERE}
        folder = cache_dir() / "unfinished" / f"{cached.name}-{key_of(engine, config.rollout.tokens_per_batch)}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            lock = folder = None
    try:
        yield Unfinished(comm.broadcast(folder), run_dir)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        if lock is not None:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


class Part:
    """A part of a fit, such as its updates or the embeddings of its pairs."""

    def __init__(self, folder: Path | None, run_dir: Path) -> None:
        self.folder, self.run_dir = folder, run_dir
        self.saved, self.took = monotonic(), 0.0

    def stopping(self) -> bool:
        """Whether the user asked to stop. Collective."""
        return stop.requested(self.run_dir)

    def due(self) -> bool:
        """Whether it is time to save again, by the main rank's clock. Collective."""
        return bool(comm.broadcast(monotonic() - self.saved >= max(EVERY, SHARE * self.took)))

    def save_updates(self, engine: Engine, step: int, losses: Tensor) -> None:
        """Save the state after update `step`, replacing the previous one. Collective.

        Args:
            losses: this rank's losses of the updates of the epoch so far. [n].
        """
        every = comm.gather(losses.cpu())
        if self.folder is None:
            return
        begun, target = monotonic(), self.folder / f"update_{step}"
        partial = self.folder / ".partial"
        if comm.is_main():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        comm.barrier()
        engine.save(partial, "engine")
        comm.barrier()
        if comm.is_main():
            save_file({str(rank): part for rank, part in enumerate(every)}, partial / "losses.safetensors")
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            for old in self.folder.glob("update_*"):
                if old != target:
                    shutil.rmtree(old)
        comm.barrier()
        self.saved = monotonic()
        self.took = self.saved - begun

    def load_updates(self, engine: Engine) -> tuple[int, Tensor | None]:
        """Load the saved state into the engine. Returns (number of updates done, losses as in `save_updates`), or (0, None) if
        there is none. Collective.

        Raises:
            UserError: the state cannot be read.
        """
        found = sorted(self.folder.glob("update_*"), key=_number) if self.folder is not None else []
        newest: Path | None = comm.broadcast(found[-1] if found else None)
        if newest is None:
            return 0, None
        try:
            losses = load_file(newest / "losses.safetensors", device=str(engine.device))[str(comm.rank())]
            engine.load(newest, "engine")
        except Exception as error:  # errors of torch, pickle, zipfile or DeepSpeed
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"{newest}: damaged ({reason}); remove it to fit from the start") from error
        return _number(newest), losses

    def save_rows(self, first: int, found: list[Tensor]) -> int:
        """Save this rank's rows from `first` on, in addition to earlier ones; returns their number. Each tensor: [n, ...]."""
        begun, rows = monotonic(), [row for part in found for row in part][first:]
        if self.folder is not None and rows:
            folder = self._own()
            folder.mkdir(parents=True, exist_ok=True)
            partial = folder / ".partial"
            save_file({"rows": torch.stack(rows)}, partial)
            partial.rename(folder / f"rows_{first}.safetensors")
        self.saved = monotonic()
        self.took = self.saved - begun
        return len(rows)

    def load_rows(self) -> list[Tensor]:
        """This rank's saved rows, in order, up to the first missing or damaged file; the rows after it are computed again."""
        found: list[Tensor] = []
        while self.folder is not None:
            file = self._own() / f"rows_{sum(map(len, found))}.safetensors"
            try:
                found.append(load_file(file)["rows"])
            except (OSError, KeyError, SafetensorError):
                break
        return found

    def _own(self) -> Path:
        assert self.folder is not None
        return self.folder / f"rank_{comm.rank()}"


def _number(path: Path) -> int:
    return int(path.name.removeprefix("update_"))
