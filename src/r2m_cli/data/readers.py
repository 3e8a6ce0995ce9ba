"""Read rows from a file, a folder, a saved data set or the hub, all as one iterator of (where, row)."""

import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from r2m_cli.data.columns import is_read
from r2m_cli.data.files import BATCH, ENDINGS, FORMS, Row, first_line, rows_of_file, rows_of_tables
from r2m_cli.data.splits import files_of_split
from r2m_cli.errors import UserError
from r2m_cli.text import from_home

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_NOT_HUB = (*ENDINGS, ".gz", ".csv", ".txt", ".zip", ".arrow")
_NEAR = 0.75  # similarity of two names, 0 to 1, from which one is suggested as a correction of the other


def read_rows(path: str, split: str = "train", subset: str | None = None) -> Iterator[Row]:
    """Yield every row of `path` in order, with its position.

    Args:
        path: one of FORMS, or, if it does not exist on disk, a hub data-set name (`owner/name`).
        split: the split of a DatasetDict, a hub data set or a folder with splits. Ignored for a single file, which is one
            split.
        subset: which configuration of a hub data set, or of a folder whose README names several.

    Raises:
        UserError: missing, damaged, not UTF-8, of an unknown kind, or without that split.

    The local forms replace the hub if there is no network.
    """
    if not path.strip():
        raise UserError(f"the data path is empty: give {FORMS}, or a hub name such as owner/name")
    local = from_home(path)
    if os.path.isdir(local):  # unlike Path.is_dir, never raises
        yield from _folder(local, split, subset)
    elif _is_there(local):
        yield from rows_of_file(local)
    elif _HUB_NAME.fullmatch(path) and not path.lower().endswith(_NOT_HUB):
        yield from _hub(path, split, subset)
    else:
        raise _missing(local)


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    return True


def _missing(path: Path) -> UserError:
    if not os.path.isdir(path.parent):
        return UserError(f"{path}: no such file, and no folder {path.parent}")
    near = _nearest(path)
    hint = f"did you mean {path.parent / near}?" if near else f"give {FORMS}"
    return UserError(f"{path}: no such file; {hint}")


def _nearest(path: Path) -> str:
    """The name in the same folder that is most similar to the path's, "" if none is similar; endings are not compared."""
    try:
        names = sorted(
            entry.name for entry in path.parent.iterdir() if entry.is_dir() or entry.name.lower().endswith(ENDINGS)
        )
    except OSError:
        return ""

    def alike(name: str) -> float:
        return difflib.SequenceMatcher(None, name.split(".")[0].lower(), path.name.split(".")[0].lower()).ratio()

    best = max(names, key=alike, default="")
    return best if best and alike(best) >= _NEAR else ""


def _folder(path: Path, split: str, subset: str | None) -> Iterator[Row]:
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        yield from _saved(path, split)
        return
    for file in files_of_split(path, split, subset):
        yield from rows_of_file(file)


def _saved(path: Path, split: str) -> Iterator[Row]:
    import datasets  # type: ignore[import-untyped]

    try:
        data = datasets.load_from_disk(str(path))
    except Exception as error:  # pyarrow, json, missing shards: any of them means a damaged folder
        raise UserError(f"{path}: damaged data set ({first_line(error)}); save or fetch it again") from error
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise UserError(f"{path}: no split {split!r}; it has {', '.join(data)}")
        data = data[split]
    yield from _rows_of_dataset(str(path), data)


def _hub(name: str, split: str, subset: str | None) -> Iterator[Row]:
    import datasets

    try:
        data = datasets.load_dataset(name, subset, split=split)
    except Exception as error:  # network libraries raise many types; how to fix it is the same
        failed = (
            f"no such path on this machine, and split {split!r} could not be loaded from the hub ({first_line(error)})"
        )
        raise UserError(f"{name}: {failed}; check name and network, or give {FORMS}") from error
    yield from _rows_of_dataset(name, data)


def _rows_of_dataset(source: str, data: Any) -> Iterator[Row]:
    # As Arrow tables, so that datasets does not decode images and audio, which would need further packages.
    names = list(data.column_names)
    read = data.select_columns([name for name in names if is_read(name)]).with_format("arrow")
    return rows_of_tables(source, names, read.iter(batch_size=BATCH))
