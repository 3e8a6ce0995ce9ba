"""Which files of a folder belong to a split: determined by the `datasets` library, without reading them.

It recognises splits by the README's `configs`, by folder (`train/`, `test/`), by file name and by the hub's shards
(`data/train-00000-of-00002.parquet`), and ignores hidden files. One of its rules is not accepted here: joining
`train_prefs` and `train_sft` as `train`.
"""

import glob
import re
from pathlib import Path
from typing import Any

from r2m_cli.data.files import FORMS, JSON_ENDINGS, first_line
from r2m_cli.errors import UserError

_UNREAD = re.compile(r"\.(csv|tsv|arrow|ndjson|(jsonl?|parquet)\.\w+)$")  # data files of unsupported kinds
_SHARD = re.compile(r"[-._ ]\d{5}-of-\d{5}.*|([-._ ]*(\d+|of(?=[-._ ]?\d)))+$")


def files_of_split(folder: Path, split: str, subset: str | None) -> list[Path]:
    """The data files of a split, in order.

    Args:
        split: a split's name, a synonym of it (`val`, `dev`), or the longer name of a part (`train_prefs`).
        subset: which of the configurations that the folder's README names; None: the default or only one.

    Raises:
        UserError: no such split or subset, several that match the name, or files of several kinds.
    """
    try:
        splits, named = _resolved(folder, subset)
    except UserError:
        raise
    except Exception as error:  # a damaged README, patterns that match nothing: the error is in the folder
        raise UserError(f"{folder}: {first_line(error)}; give {FORMS}") from error
    if not any(splits.values()):
        raise UserError(f"{folder}: a folder without data; give {FORMS}")
    files = _chosen(folder, splits, split, named)
    kinds = {_kind(file) for file in files}
    if len(kinds) > 1:
        names = ", ".join(sorted(file.name for file in files)[:6])
        raise UserError(
            f"{folder}: split {split!r} has files of several kinds ({names}); give one file, or remove some"
        )
    return files


def _resolved(folder: Path, subset: str | None) -> tuple[dict[str, list[Path]], bool]:
    """Every split's files, and whether the README names them (otherwise their paths do)."""
    from datasets.data_files import (  # type: ignore[import-untyped]
        DataFilesDict,
        EmptyDatasetError,
        get_data_patterns,
        sanitize_patterns,
    )

    base = glob.escape(str(folder.resolve()))  # the patterns of `datasets` begin with it
    configuration = _configuration(folder, subset)
    if configuration.get("data_dir"):
        base = f"{base}/{configuration['data_dir']}"
    named = configuration.get("data_files") is not None
    try:
        patterns = sanitize_patterns(configuration["data_files"]) if named else get_data_patterns(base)
    except EmptyDatasetError:
        return {}, False
    elsewhere = [pattern for part in patterns.values() for pattern in part if "://" in pattern]
    if elsewhere:
        raise UserError(f"{folder}/README.md: names files that are not on this machine ({elsewhere[0]}); download them")
    found = DataFilesDict.from_patterns(patterns, base_path=base)
    splits = {str(split): [_as_given(file, folder) for file in files if _kind(file)] for split, files in found.items()}
    splits = {split: files for split, files in splits.items() if files}
    if named and not splits:
        raise UserError(
            f"{folder}/README.md: none of the data files that it names exists; give a file, or download them"
        )
    return splits, named


def _as_given(file: str, folder: Path) -> Path:
    """A file's path below the folder as the user named it: `datasets` resolves symbolic links."""
    path, root = Path(file), folder.resolve()
    return folder / path.relative_to(root) if path.is_relative_to(root) else path


def _configuration(folder: Path, subset: str | None) -> dict[str, Any]:
    """The README's configuration of a subset; {} if it has none."""
    from datasets.utils.metadata import MetadataConfigs  # type: ignore[import-untyped]
    from huggingface_hub import DatasetCard

    readme = folder / "README.md"
    try:
        card = DatasetCard.load(readme).data if readme.is_file() else None
        known = MetadataConfigs.from_dataset_card_data(card) if card is not None else MetadataConfigs()
        name = subset or known.get_default_config_name()
    except Exception as error:  # errors of YAML and datasets: any of them means a bad header
        raise UserError(
            f"{readme}: its header cannot be read ({first_line(error)}); correct it, or give a file"
        ) from error
    if name in known:
        return dict(known[name])
    if known:
        raise UserError(f"{folder}: {_which(subset)}; it has {', '.join(map(str, known))}")
    if subset is not None:
        raise UserError(f"{folder}: no subset {subset!r}: its README names none; set data.subset=null")
    return {}


def _which(subset: str | None) -> str:
    return "several subsets: set data.subset to one" if subset is None else f"no subset {subset!r}"


def _chosen(folder: Path, splits: dict[str, list[Path]], split: str, named: bool) -> list[Path]:
    parts: dict[str, list[Path]] = {}  # by the split's full name in the path: train, train_prefs
    for name, files in () if named else splits.items():
        for file in files:
            same = parts.setdefault(_part(file.relative_to(folder), name), [])
            same.extend([] if file in same else [file])
    of_split = sorted(part for part, files in parts.items() if not set(files).isdisjoint(splits.get(split, [])))
    if len(of_split) > 1 and split not in of_split:
        names = ", ".join(of_split)
        raise UserError(f"{folder}: split {split!r} could be any of {names}; set data.split to one, or give a file")
    if split in splits and len(of_split) < 2:
        return splits[split]
    if split in parts:  # an exact match, without the parts that `datasets` joins with it
        return parts[split]
    synonym = next((known for known, words in _keywords().items() if split in words and known in splits), None)
    if synonym is not None:
        return _chosen(folder, splits, synonym, named)
    names = ", ".join(dict.fromkeys([*splits, *parts]))
    raise UserError(f"{folder}: no split {split!r}; it has {names}; set data.split, or give one file")


def _part(path: Path, split: str) -> str:
    """The full name of the split in a path: `train_prefs` for `data/train_prefs-00000-of-00001.parquet`.

    `split` itself, if nothing in the path begins like a split.
    """
    words = "|".join(sorted((word for words in _keywords().values() for word in words), key=len, reverse=True))
    *folders, name = path.parts
    for text in (*folders, name.partition(".")[0]):
        found = re.search(rf"(?:^|[-._ 0-9])((?:{words})(?=[-._ 0-9]|$).*)", text, re.IGNORECASE)
        if found:
            return _SHARD.sub("", found[1])
    return split


def _keywords() -> dict[str, list[str]]:
    from datasets.data_files import SPLIT_KEYWORDS

    return {str(split): words for split, words in SPLIT_KEYWORDS.items()}


def _kind(file: str | Path) -> str:
    """The kind of data in a file, by its name; "" for other files (texts, pictures)."""
    name = str(file).lower()
    if name.endswith(JSON_ENDINGS):
        return "json"
    return "parquet" if name.endswith(".parquet") else next(iter(_UNREAD.findall(name)), ("",))[0]
