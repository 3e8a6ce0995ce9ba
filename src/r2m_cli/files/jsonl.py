"""JSON lines, as a run's files have them: written without escapes, so that every language stays readable."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from r2m_cli.files.regular import require_regular

LAST_STEP = 10**15  # a larger number is no step


def text_of(rows: Iterable[Mapping[str, Any]], allow_nan: bool = True) -> str:
    """Rows as lines. Raises ValueError for a number that is not finite unless `allow_nan`."""
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=allow_nan) + "\n" for row in rows)
    # Half of a surrogate pair is no UTF-8: it is written as JSON's own escape.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def lines_of(path: Path) -> list[str]:
    """The lines of a file, split at the newline alone: str.splitlines also cuts at U+2028, which a response may hold.

    A last line that was cut off inside a character is left out: a run that was killed, or writes this moment, has one.

    Raises:
        UserError: no regular file.
        ValueError: a line that is not UTF-8.
    """
    require_regular(path)
    *lines, last = path.read_bytes().split(b"\n")
    found = [line.decode("utf-8") for line in lines]
    try:
        return [*found, last.decode("utf-8")] if last else found
    except UnicodeDecodeError as error:
        if error.end < len(last) or error.reason != "unexpected end of data":
            raise
        return found


def row_of(line: str | bytes) -> dict[str, Any]:
    """A line as an object with a step. Raises ValueError for anything else."""
    try:
        row = json.loads(line)
        step = row["step"]
    except (LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"no object with a step ({type(error).__name__})") from error
    if not isinstance(row, dict) or isinstance(step, bool) or not isinstance(step, int) or not 0 <= step <= LAST_STEP:
        raise ValueError(f"step={str(step)[:40]}: no whole number of steps")
    return row


def cut_rows(path: Path, start_step: int) -> None:
    """Drop the rows of the file `path` from `start_step` on, and a torn last line; atomic."""
    require_regular(path)
    if path.exists():
        lines = path.read_bytes().split(b"\n")
        replace_bytes(path, b"".join(line + b"\n" for line in lines if _step_of(line) < start_step))


def cut_line(path: Path) -> None:
    """Drop what stands behind the last newline of a text file, where a crash cut it off, and what is no text; atomic."""
    require_regular(path)
    if path.exists():
        whole = path.read_bytes().rpartition(b"\n")
        replace_text(path, b"".join(whole[:2]).decode("utf-8", "replace"))


def replace_text(path: Path, text: str) -> None:
    """Put `text` into the file `path`, all of it or none. Half of a surrogate pair becomes its escape."""
    replace_bytes(path, text.encode("utf-8", "backslashreplace"))


def replace_bytes(path: Path, content: bytes) -> None:
    """Put `content` into the file `path`, all of it or none; nothing else is left behind, whatever fails."""
    part = path.with_name(path.name + ".tmp")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _step_of(line: bytes) -> float:
    try:
        return int(row_of(line)["step"])
    except ValueError:  # a line torn by a crash
        return math.inf
