"""What is made once and used again: fitted models and converted weights, in the user's cache directory."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from r2m_cli.console import tell
from r2m_cli.errors import UserError
from r2m_cli.files.regular import require_regular
from r2m_cli.text import from_home

FORMAT = 1  # raise it when what is built from the same configuration changes


def cache_dir() -> Path:
    """$R2M_CACHE, else r2m/ in the user's cache directory."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "r2m"
    return from_home(os.environ.get("R2M_CACHE") or default)


def key_of(*parts: Any) -> str:
    """Twelve hex digits that change with any of the (JSON-serialisable) parts."""
    text = json.dumps([FORMAT, *parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def digest_of(path: Path) -> str:
    """Digest of a file's content, or of the names, sizes and times of a folder's files."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return key_of([[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in files])


def build_once(name: str, build: Callable[[Path], None], notice: str) -> Path:
    """The cached folder `name`; `build(folder)` fills it if it is missing, with `notice` on the terminal.

    The folder appears whole or not at all: it is built beside its place and renamed, under a lock that makes a second
    process wait instead of building the same thing.
    """
    target = cache_dir() / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.with_name(f".{name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tell(f"waiting for another process that is making {name}")
        lock.acquire()
    try:
        if not target.is_dir():  # else the other process has made it
            tell(notice)
            write_folder(target, build)
    finally:
        lock.release()
    return target


def write_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a folder that then appears at `target` whole, in place of what was there, or not at all."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    made = [folder for folder in partial.parents if not folder.exists()]  # the innermost first
    partial.mkdir(parents=True)
    try:
        fill(partial)
    except (UserError, KeyboardInterrupt, SystemExit):
        shutil.rmtree(partial, ignore_errors=True)
        for folder in made:
            if not any(folder.iterdir()):
                folder.rmdir()
        raise  # what a crash left, its logs among it, stays to be read until the next try
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a run. Raises UserError if it is none."""
    require_regular(path)
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON object ({error}); copy it again") from error
