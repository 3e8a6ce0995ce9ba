"""Where rows come from: a file, a folder, a saved data set or the hub; one iterator of (where, row) for all.

A row that is merely unsuitable is the caller's business (it drops and counts it). A *damaged* source is not:
it stops at once, because nothing should be trained on half a file.
"""

import difflib
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from r2m_cli.errors import UserError

_NOT_JSON = (ValueError, RecursionError)  # JSONDecodeError, integers too long to hold; nesting too deep
Row = tuple[str, Any]  # ("file:line" or "file:row N", the decoded value)

ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
FORMS = f"a file ({', '.join(ENDINGS)}) or a folder (datasets.save_to_disk, or .jsonl/.parquet files)"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_NOT_HUB = (*ENDINGS, ".gz", ".csv", ".txt", ".zip", ".arrow")
_SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")


def read_rows(path: str, split: str = "train") -> Iterator[Row]:
    """Yield every row of `path` in its order, with the place it stands at.

    Args:
        path: one of FORMS, or, if nothing of that name is on disk, a hub data-set name (`owner/name`).
        split: which part of a DatasetDict, a hub data set or a folder with files named after splits.
            A single file is one split already, and so ignores it.

    Raises:
        UserError: missing, damaged, not UTF-8, of an unknown kind, or without that split.

    The local forms stand in for the hub where there is no network.
    """
    if not path.strip():
        raise UserError(f"the data path is empty: give {FORMS}, or a hub name such as owner/name")
    local = Path(path).expanduser()
    if local.is_dir():
        yield from _folder(local, split)
    elif local.exists():
        yield from _file(local)
    elif _HUB_NAME.fullmatch(path) and not path.lower().endswith(_NOT_HUB):
        yield from _hub(path, split)
    else:
        raise _missing(local)


def _missing(path: Path) -> UserError:
    if not path.parent.is_dir():
        return UserError(f"{path}: no such file, nor is there a folder {path.parent}")
    close = difflib.get_close_matches(path.name, sorted(entry.name for entry in path.parent.iterdir()), n=1)
    hint = f"did you mean {path.parent / close[0]}?" if close else f"give {FORMS}"
    return UserError(f"{path}: no such file; {hint}")


def _file(path: Path) -> Iterator[Row]:
    name = path.name.lower()
    if name.endswith(".parquet"):
        return _parquet(path)
    if name.endswith((".jsonl", ".jsonl.gz")):
        return _json_lines(path, _lines(path))
    if name.endswith((".json", ".json.gz")):
        return _json(path)
    raise UserError(f"{path}: unknown kind of data; give {FORMS}")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a text file, split at the newline byte alone: str.splitlines also cuts at U+2028."""
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
            mend = "name a file that is one JSON list .json" if is_list else "the file is damaged: fetch it again"
            raise UserError(f"{path}:{number}: not valid JSON ({error}); {mend}") from error
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
        mend = "the file is damaged: fetch it again"
        raise UserError(f"{path}:{line}: not valid JSON ({error}); {mend}") from error
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
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    number = 0
    try:
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:row {number}", row
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = f"unreadable parquet ({_first_line(error)})"
        raise UserError(f"{path}:row {number + 1}: {reason}; fetch the file again") from error


def _folder(path: Path, split: str) -> Iterator[Row]:
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        yield from _saved(path, split)
        return
    endings = (".jsonl", ".jsonl.gz", ".parquet")  # a .json beside them is often a description, not data
    files = [file for file in sorted(path.rglob("*")) if file.name.lower().endswith(endings)]
    if not files:
        raise UserError(f"{path}: a folder without data; give {FORMS}")
    chosen = [file for file in files if _names_split(file.name, split)]
    if not chosen and any(_names_split(file.name, known) for file in files for known in _SPLITS):
        names = ", ".join(file.name for file in files[:6])
        raise UserError(f"{path}: no file of split {split!r} among {names}; set the split, or give one file")
    for file in chosen or files:
        yield from _file(file)


def _names_split(name: str, split: str) -> bool:
    """`train-00000-of-00002.parquet` and `pandalm_train.jsonl` are train's; `training.jsonl` is not."""
    return re.search(rf"(?<![a-z0-9]){re.escape(split.lower())}(?![a-z0-9])", name.lower()) is not None


def _saved(path: Path, split: str) -> Iterator[Row]:
    import datasets  # type: ignore[import-untyped]

    try:
        data = datasets.load_from_disk(str(path))
    except Exception as error:  # pyarrow, json, missing shards: whatever it is, the folder is not whole
        raise UserError(f"{path}: damaged data set ({_first_line(error)}); save or fetch it again") from error
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise UserError(f"{path}: no split {split!r}; it has {', '.join(data)}")
        data = data[split]
    yield from _numbered(str(path), data)


def _hub(name: str, split: str) -> Iterator[Row]:
    import datasets

    try:
        data = datasets.load_dataset(name, split=split)
    except Exception as error:  # network stacks raise anything; the mend is the same
        failed = f"no such path here, and split {split!r} did not load from the hub ({_first_line(error)})"
        raise UserError(f"{name}: {failed}; check name and network, or give {FORMS}") from error
    yield from _numbered(name, data)


def _numbered(source: str, rows: Iterable[Any]) -> Iterator[Row]:
    number = 0
    try:
        for row in rows:
            number += 1
            yield f"{source}:row {number}", row
    except (OSError, ValueError) as error:  # pyarrow's: a cut Arrow file may show only when it is read
        reason = f"unreadable ({_first_line(error)})"
        raise UserError(f"{source}:row {number + 1}: {reason}; fetch it again") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
