"""JSON lines, as a run's files have them: written without escapes, so that every language stays readable."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def text_of(rows: Iterable[Mapping[str, Any]], allow_nan: bool = True) -> str:
    """Rows as lines. Raises ValueError for a number that is not finite unless `allow_nan`."""
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=allow_nan) + "\n" for row in rows)


def lines_of(path: Path) -> list[str]:
    """The lines of a file, split at the newline alone: str.splitlines also cuts at U+2028, which a response may hold.

    Raises:
        ValueError: the file is not UTF-8.
    """
    text = path.read_text(encoding="utf-8").removesuffix("\n")
    return text.split("\n") if text else []


def cut_rows(path: Path, start_step: int) -> None:
    """Drop the rows of the file `path` from `start_step` on, and a torn last line; atomic."""
    if path.exists():
        replace_text(path, "".join(line + "\n" for line in lines_of(path) if _step_of(line) < start_step))


def replace_text(path: Path, text: str) -> None:
    """Put `text` into the file `path`, all of it or none."""
    part = path.with_name(path.name + ".tmp")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line torn by a crash
        return math.inf
