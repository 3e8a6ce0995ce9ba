"""The cache of fitted models and converted weights, in the user's cache directory: each is built once and reused."""

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

FORMAT = 1  # increase it when the same configuration would build something different


def cache_dir() -> Path:
    """$R2M_CACHE if set, otherwise r2m/ in the user's cache directory."""
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
    """The cached folder `name`; if it is missing, `notice` is printed and `build(folder)` fills it.

    The folder appears complete or not at all: it is built under a temporary name next to it and then renamed. A lock makes
    a second process wait instead of building the same thing.
    """
    target = cache_dir() / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.with_name(f".{name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tell(f"waiting for another process that is building {name}")
        lock.acquire()
    try:
        if not target.is_dir():  # otherwise the other process has built it
            tell(notice)
            write_folder(target, build)
    finally:
        lock.release()
    return target


def write_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a folder, which then replaces `target` completely or not at all."""
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
        raise  # after a crash the partial folder, with its logs, stays for inspection until the next try
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a run. Raises UserError if there is none."""
    require_regular(path)
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON object ({error}); copy it again") from error
