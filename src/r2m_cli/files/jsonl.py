"""JSON lines, the format of a run's files: written without escapes, so that text in every language stays readable."""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from r2m_cli.files.regular import require_regular

T = TypeVar("T")
LAST_STEP = 10**15  # a larger number cannot be a step


def text_of(rows: Iterable[Mapping[str, Any]], allow_nan: bool = True) -> str:
    """Rows as JSON lines. Raises ValueError for a number that is not finite, unless `allow_nan`."""
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=allow_nan) + "\n" for row in rows)
    # Half of a surrogate pair is not valid UTF-8: it is written as a JSON escape.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def valid(value: Any) -> Any:
    """`value` converted to valid JSON: numbers of torch or numpy become Python numbers, non-finite ones None."""
    if isinstance(value, Mapping):
        return {str(key): valid(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [valid(item) for item in value]
    if value is None or isinstance(value, str | bool):
        return value
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int) else str(value)


def lines_of(path: Path) -> list[str]:
    """The lines of a file, split only at newlines: str.splitlines also splits at U+2028, which a response may contain.

    A last line that ends inside a character is left out: a run that was killed, or is writing right now, has one.

    Raises:
        UserError: not a regular file.
        ValueError: a line is not UTF-8.
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


def row_of(line: bytes) -> dict[str, Any]:
    """Parse a line that holds an object with a step. Raises ValueError for anything else."""
    try:
        row = json.loads(line.decode("utf-8"))
        step = row["step"]
    except (LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"not an object with a step ({type(error).__name__})") from error
    if not isinstance(row, dict) or isinstance(step, bool) or not isinstance(step, int) or not 0 <= step <= LAST_STEP:
        raise ValueError(f"step={str(step)[:40]}: not a valid step number")
    return row


def parsed(path: Path, parse: Callable[[bytes], T]) -> tuple[list[T], list[int]]:
    """(the parsed lines of a run's file, the numbers of the lines that were left out because `parse` failed).

    An incomplete last line is left out without its number: a run that was killed, or is writing right now, has one.

    Args:
        parse: raises ValueError, LookupError or TypeError for an invalid line.

    Raises:
        UserError: not a regular file.
    """
    require_regular(path)
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    good: list[T] = []
    bad: list[int] = []
    last = max((number for number, line in enumerate(lines, start=1) if line.strip()), default=0)
    for number, line in enumerate(lines[:last], start=1):
        if not line.strip():
            continue
        try:
            good.append(parse(line))
        except (ValueError, LookupError, TypeError):
            bad += [number] if number < last else []
    return good, bad


def left_out(path: Path, bad: Sequence[int], what: str) -> str:
    """The message about lines that were left out because they are not `what`."""
    shown = ", ".join(f"{path.name}:{number}" for number in bad[:3]) + (", ..." if len(bad) > 3 else "")
    return f"{path}: left out {len(bad)}: not {what} ({shown})"


def cut_rows(path: Path, start_step: int) -> str | None:
    """Remove the rows from `start_step` on, and invalid lines, from the file `path`; atomic.

    Returns the message about the invalid lines, not counting an incomplete last one; None if there are none.

    Raises:
        UserError: not a regular file.
    """
    rows, bad = parsed(path, lambda line: (row_of(line)["step"], line))
    if path.exists():
        replace_bytes(path, b"".join(line + b"\n" for step, line in rows if step < start_step))
    return left_out(path, bad, "a JSON object with a step") if bad else None


def cut_line(path: Path) -> None:
    """Remove an incomplete last line, left by a crash, from a text file, and replace bytes that are not UTF-8; atomic."""
    require_regular(path)
    if path.exists():
        whole = path.read_bytes().rpartition(b"\n")
        replace_text(path, b"".join(whole[:2]).decode("utf-8", "replace"))


def replace_text(path: Path, text: str) -> None:
    """Replace the content of the file `path` with `text`, atomically. Half of a surrogate pair is written as an escape."""
    replace_bytes(path, text.encode("utf-8", "backslashreplace"))


def replace_bytes(path: Path, content: bytes) -> None:
    """Replace the content of the file `path`, atomically; no temporary file is left, whatever fails."""
    part = path.with_name(path.name + ".tmp")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
