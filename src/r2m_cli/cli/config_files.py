"""Checks a user's own configuration files (--config-dir), and lists the choices of the groups."""

import io
import math
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from r2m_cli.errors import UserError, printable

PLUGINS = ("hydra/launcher", "hydra/sweeper")
MOST = 10_000  # values in a file with aliases expanded: a few lines of aliases can expand to billions


def choices(group: str, word: str = "train", folder: str | None = None) -> list[str]:
    """The choices of a group of the packaged configuration and of `folder`, in order; empty if there is no such group."""
    if group in PLUGINS:
        from hydra.core.config_store import ConfigStore
        from hydra.core.plugins import Plugins

        Plugins.instance()  # importing the installed plugins registers their choices
        return sorted(name.removesuffix(".yaml") for name in ConfigStore.instance().list(group))
    if not group or "." in group or word == "report":
        return []
    found = {path.stem for root in _roots(folder) for path in (root / group).glob("*.yaml")}
    return sorted(found)


def _roots(folder: str | None) -> list[Path]:
    packaged = Path(str(files("r2m_cli.conf")))
    return [packaged] if folder is None else [packaged, Path(folder)]


def check(folder: str | None, overrides: Iterable[str]) -> None:
    """Raises UserError for a broken file in `folder` that an override chooses, directly or through another file's defaults."""
    if folder is None:
        return
    seen: set[Path] = set()
    waiting = [tuple(override.lstrip("+").partition("=")[::2]) for override in overrides]
    while waiting:
        group, choice = waiting.pop()
        for name in choice.split(","):
            path = Path(folder, group.split("@")[0], f"{name.removesuffix('.yaml').strip()}.yaml")
            if path not in seen and path.exists():
                seen.add(path)
                waiting += [(near, str(other)) for near, other in _defaults(_read(path), group)]


def _defaults(content: dict[str, Any], group: str) -> Iterator[tuple[str, Any]]:
    """(group, choice) of the files that a file's defaults list names."""
    listed = content.get("defaults")
    for entry in listed if isinstance(listed, list) else []:
        for key, choice in entry.items() if isinstance(entry, dict) else [("", entry)]:
            named = str(key).removeprefix("override ").split()[-1:] or [""]
            absolute = named[0].startswith("/")
            inner = named[0].strip("/")
            for choice_ in choice if isinstance(choice, list) else [choice]:
                yield inner if absolute or not group else "/".join(filter(None, (group, inner))), choice_
                yield inner, choice_


def _read(path: Path) -> dict[str, Any]:
    """A file's content. Raises UserError, with the file and the line, for one that Hydra cannot read."""
    import yaml
    from omegaconf import OmegaConf

    if not path.is_file():
        raise UserError(f"{path}: not a file; a choice of a group is a YAML file")
    raw = path.read_bytes()
    if raw.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path}: begins with a byte-order mark; save it as UTF-8 without one")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 (byte {raw[error.start]:#04x}); save the file as UTF-8") from None
    try:
        if _values(yaml.compose(text, Loader=yaml.SafeLoader), {}) > MOST:
            raise UserError(f"{path}: its aliases (*name) expand to more than {MOST:,} values; write the values out")
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.ScalarEvent) and printable(event.value) != event.value:
                place = f"{path}:{event.start_mark.line + 1}"
                raise UserError(f"{place}: {event.value} is half of a surrogate pair; write the complete character")
        content = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
    except UserError:
        raise
    except OSError:  # OmegaConf raises this for a file that is a single number
        content = [text]
    except yaml.YAMLError as error:
        raise UserError(f"{path}{_line(error)}: {_reason(error)}") from None
    except Exception as error:  # OmegaConf's own errors: an unclosed interpolation, a key of an unsupported type
        raise UserError(f"{path}: {next(iter(str(error).splitlines()), type(error).__name__)}") from None
    if not content:
        raise UserError(f"{path}: is empty; write one key per line, or leave the file out")
    if not isinstance(content, dict) or ":" not in text:  # OmegaConf turns a single word into a key
        raise UserError(
            f"{path}: holds no keys; write `key: value` lines (for example ppo: with an indented beta: 0.1 below it)"
        )
    return {str(key): value for key, value in content.items()}


def _values(node: Any, known: dict[int, float]) -> float:
    """How many values a YAML node has with its aliases expanded; infinite for a node that contains itself.

    Args:
        known: id of a node -> its values; filled.
    """
    from yaml.nodes import CollectionNode, MappingNode

    if not isinstance(node, CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf  # while it is being counted
        parts = [part for pair in node.value for part in pair] if isinstance(node, MappingNode) else node.value
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(node)]


def _line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f":{mark.line + 1}" if mark is not None else ""


def _reason(error: Exception) -> str:
    problem = getattr(error, "problem", None) or next(iter(str(error).splitlines()), "")
    if "'\\t'" in problem:
        return "a tab; indent with spaces"
    if "duplicate key" in problem:
        return f"{problem}; keep one of the two"
    return f"not valid YAML ({problem})"
