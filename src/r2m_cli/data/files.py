"""The rows of one file (JSON lines, JSON, parquet), or of Arrow tables, each with its position.

Unsuitable rows are left to the caller, who drops and counts them. A *damaged* source is an error at once, because nothing
should be trained on half a file.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from r2m_cli.data.columns import is_read
from r2m_cli.errors import UserError
from r2m_cli.files.regular import require_regular

_NOT_JSON = (ValueError, RecursionError)  # JSONDecodeError, integers too long to hold; nesting too deep
Row = tuple[str, Any]  # ("file:line" or "file:row N", the decoded value)

JSON_ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
ENDINGS = (*JSON_ENDINGS, ".parquet")
FORMS = f"a file ({', '.join(ENDINGS)}) or a folder (datasets.save_to_disk, or files of these kinds)"
BATCH = 256  # rows of a table in memory at a time


def rows_of_file(path: Path) -> Iterator[Row]:
    """The rows of a file of one of the ENDINGS.

    Raises:
        UserError: not a regular file, damaged, not UTF-8, or of an unknown kind.
    """
    require_regular(path)
    name = path.name.lower()
    if name.endswith(".parquet"):
        return _parquet(path)
    if name.endswith((".jsonl", ".jsonl.gz")):
        return _json_lines(path, _lines(path))
    if name.endswith((".json", ".json.gz")):
        return _json(path)
    raise UserError(f"{path}: unknown kind of data; give {FORMS}")


def rows_of_tables(source: str, columns: list[str], tables: Iterator[Any]) -> Iterator[Row]:
    """The rows of Arrow tables or batches, in order.

    Only columns that `columns.is_read` accepts are decoded; the others are None. A value that Python cannot hold (a date
    after the year 9999) is replaced by its error, which no row form accepts.

    Args:
        source: name of the source, for the rows' positions.
        columns: all columns of the data.

    Raises:
        UserError: a table cannot be read.
    """
    number = 0
    while (table := _next(source, tables, number)) is not None:
        read = {name: _values(table.column(name)) for name in table.schema.names if is_read(name)}
        for i in range(table.num_rows):
            number += 1
            yield f"{source}:row {number}", {name: read[name][i] if name in read else None for name in columns}


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if the message is empty."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _next(source: str, tables: Iterator[Any], number: int) -> Any:
    try:
        return next(tables, None)
    except Exception as error:  # pyarrow raises many types; a truncated file may be noticed only while reading
        reason = f"unreadable table ({first_line(error)})"
        raise UserError(f"{source}:row {number + 1}: {reason}; fetch it again") from error


def _values(column: Any) -> list[Any]:
    try:
        return list(column.to_pylist())
    except Exception:  # OverflowError, UnicodeDecodeError, duplicate names: the other rows can be read
        return [_value(cell) for cell in column]


def _value(cell: Any) -> Any:
    try:
        return cell.as_py()
    except Exception as error:
        return error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a text file, split only at the newline byte: str.splitlines also splits at U+2028."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.name.lower().endswith(".gz") else open(path, "rb") as stream:
            for number, raw in enumerate(stream, 1):
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{number}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}:{number + 1}: damaged gzip ({error}); fetch the file again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check the file") from error


def _json_lines(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[Row]:
    for number, text in lines:
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except _NOT_JSON as error:
            is_list = number == 1 and text.lstrip().startswith("[")
            fix = "name a file that is one JSON list .json" if is_list else "the file is damaged: fetch it again"
            raise UserError(f"{path}:{number}: not valid JSON ({error}); {fix}") from error
        yield f"{path}:{number}", row


def _json(path: Path) -> Iterator[Row]:
    """One JSON list, {"data": [list]}, or JSON lines under the wrong name."""
    lines = list(_lines(path))
    try:
        whole = json.loads("".join(text for _, text in lines) or "[]")
    except _NOT_JSON as error:
        if _starts_with_object(lines):
            yield from _json_lines(path, lines)
            return
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        raise UserError(f"{path}:{line}: not valid JSON ({error}); the file is damaged: fetch it again") from error
    rows = whole.get("data", whole) if isinstance(whole, dict) else whole
    if isinstance(rows, dict):  # a single row: JSON lines with one line
        yield f"{path}:1", rows
    elif isinstance(rows, list):
        for number, row in enumerate(rows, 1):
            yield f"{path}:row {number}", row
    else:
        raise UserError(f'{path}: neither a list of rows nor {{"data": [rows]}}; write it as JSON lines')


def _starts_with_object(lines: list[tuple[int, str]]) -> bool:
    first = next((text for _, text in lines if text.strip()), "")
    try:
        return isinstance(json.loads(first), dict)
    except _NOT_JSON:
        return False


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        table = pq.ParquetFile(path)
        names = list(table.schema_arrow.names)
        batches = table.iter_batches(batch_size=BATCH, columns=[name for name in names if is_read(name)])
    except Exception as error:  # pyarrow raises many types; any of them means a damaged file
        raise UserError(f"{path}:row 1: unreadable parquet ({first_line(error)}); fetch the file again") from error
    with table:
        yield from rows_of_tables(str(path), names, batches)
