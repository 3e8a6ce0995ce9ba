"""Whether a checkpoint is what was written: a digest of each of its files, and files that a power cut leaves whole."""

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
    """Write the digests of all files below the folder beside them, and see everything onto the disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {str(path.relative_to(folder)): of_file(path) for path in files}
    (folder / CHECKSUMS).write_text(json.dumps(digests, indent=2), encoding="utf-8")
    for path in (*files, folder / CHECKSUMS, *(p for p in folder.rglob("*") if p.is_dir()), folder):
        to_disk(path)


def to_disk(path: Path) -> None:
    """Have the system write a file, or a folder's entries, to the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, `FILE: reason`; None for a sound one.

    A checkpoint of an older r2m has no digests; of it only the position is looked at.
    """
    try:
        state = read_json(folder / LOOP)
        digests: dict[str, Any] = read_json(folder / CHECKSUMS) if (folder / CHECKSUMS).exists() else {}
    except UserError as error:
        return str(error).removeprefix(f"{folder}/")
    if not isinstance(state.get("step"), int) or not isinstance(state.get("ranks"), int):
        return f"{LOOP}: does not say its step and ranks"
    if not digests and "config" in state:
        return f"{CHECKSUMS}: missing"
    for name, digest in digests.items():
        file = folder / name
        if not file.is_file():
            return f"{name}: missing"
        if of_file(file) != digest:
            return f"{name}: damaged, it is not what was written"
    return None
