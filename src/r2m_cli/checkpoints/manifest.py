"""Detects damaged checkpoints with a digest of every file, and flushes files to disk so that they survive a power cut."""

import json
import os
from pathlib import Path
from typing import Any

from r2m_cli.checkpoints.fingerprint import of_file
from r2m_cli.errors import UserError
from r2m_cli.files.cache import read_json

CHECKSUMS = "checksums.json"  # in a checkpoint: file -> digest of its content
LOOP = "loop.json"  # in a checkpoint: the loop's position


def seal(folder: Path) -> None:
    """Write the digests of all files below the folder into it, and flush everything to disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {str(path.relative_to(folder)): of_file(path) for path in files}
    (folder / CHECKSUMS).write_text(json.dumps(digests, indent=2), encoding="utf-8")
    for path in (*files, folder / CHECKSUMS, *(p for p in folder.rglob("*") if p.is_dir()), folder):
        to_disk(path)


def to_disk(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, as `FILE: reason`; None if it is valid.

    Checkpoints of older versions have no digests; only their loop.json is checked.
    """
    try:
        state = read_json(folder / LOOP)
        digests: dict[str, Any] = read_json(folder / CHECKSUMS) if (folder / CHECKSUMS).exists() else {}
    except UserError as error:
        return str(error).removeprefix(f"{folder}/")
    if not isinstance(state.get("step"), int) or not isinstance(state.get("ranks"), int):
        return f"{LOOP}: has no valid step and ranks"
    if not digests and "config" in state:
        return f"{CHECKSUMS}: missing"
    for name, digest in digests.items():
        file = folder / name
        if not file.is_file():
            return f"{name}: missing"
        if of_file(file) != digest:
            return f"{name}: damaged, its content has changed since it was written"
    return None
