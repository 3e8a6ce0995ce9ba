"""Documentation of every configuration key and group, read from the comments in the schema and in the files of conf/."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from r2m_cli.config.schema import Config, ReportConfig
from r2m_cli.config.values import AT_LEAST, AT_MOST, CHOICES, UNIT_INTERVAL

FIELD = re.compile(r"    (\w+): ")
COMMENT = re.compile(r"    # (.*)")
ADDED = ("experiment", "world", "method", "sweep", "debug")  # groups that are added with a plus

# Key prefix -> the words that read it; the longest matching prefix counts. `r2m report` has its own keys.
ALL = ("train", "sft", "reward", "evaluate", "analyze")
READ_BY: dict[str, tuple[str, ...]] = {
    "task": ALL, "seed": ("train", "evaluate", "analyze"), "resume": ("train",), "run": ("evaluate", "analyze"),
    "runs": ("analyze",), "output": ("sft", "reward"), "train": ("train",),
    "policy": ALL, "policy.lora_rank": ("train",),
    "reward": ("train", "reward", "evaluate", "analyze"), "reward.members": ("train", "evaluate"),
    "reward.paths": ("train", "evaluate"), "reward.combine": ("train", "evaluate"), "reward.uncertainty": ("train", "evaluate"),
    "feedback": ("train",), "ppo": ("train",), "guard": ("train",),
    "rollout": ALL, "rollout.temperature": ("train", "reward", "evaluate", "analyze"),
    "rollout.batch_size": ("train", "evaluate", "analyze"), "rollout.engine": ("train", "evaluate", "analyze"),
    "rollout.vllm": ("train", "evaluate", "analyze"), "rollout.is_cap": ("train",),
    "data": ALL, "data.pairs": ("train", "reward", "evaluate", "analyze"), "data.prompts": ("train",),
    "eval.every": ("train",), "eval.reward_check_pairs": ("train",), "eval.prompts": ("train", "evaluate", "analyze"),
    "eval.pairs": ("train", "reward", "evaluate", "analyze"),
    "eval.judge": ("evaluate",), "eval.against": ("evaluate",), "eval.best_of": ("evaluate",),
    "eval.reward": ("evaluate", "analyze"), "analysis": ("analyze",), "engine": ALL,
    "checkpoint": ("train",), "logger": ("train",), "judge": ("train", "evaluate"),
}  # fmt: skip


@dataclass(frozen=True)
class Key:
    """One configuration key."""

    name: str  # dotted
    type: str
    default: str
    allowed: tuple[str, ...]  # its choices, or one string with its bounds; empty: any value of the type
    meaning: str


def words_of(key: str) -> tuple[str, ...]:
    """The words that read a key of `Config`; empty for an unknown one."""
    found = [begin for begin in READ_BY if key == begin or key.startswith(f"{begin}.")]
    return READ_BY[max(found, key=len)] if found else ()


def keys_read_by(word: str) -> list[Key]:
    """The keys that `r2m word` reads, in the schema's order."""
    if word == "report":
        return list(keys_of(ReportConfig, ""))
    return [
        key
        for prefix, _, part in parts()
        if part is not ReportConfig
        for key in keys_of(part, prefix)
        if word in words_of(key.name)
    ]


def parts() -> Iterator[tuple[str, str, type]]:
    """(prefix, title, dataclass) of every part of the schema."""
    yield "", "The run itself", Config
    for field in fields(Config):
        if is_dataclass(field.type):
            yield f"{field.name}.", f"`{field.name}`", field.type  # type: ignore[misc]
    yield "", "`r2m report`", ReportConfig


def keys_of(schema: type, prefix: str) -> Iterator[Key]:
    """The keys of a dataclass, then those of nested ones. At the top level (no prefix) nested ones are separate parts and left out."""
    meanings = comments(schema)
    nested = []
    for field in fields(schema):
        name = prefix + field.name
        if is_dataclass(field.type):
            nested += [(field.type, name + ".")] if prefix else []
            continue
        made = field.default_factory() if field.default_factory is not MISSING else field.default
        yield Key(name, kind(field.type), shown(made), allowed(name), meanings[field.name])
    for inner, name in nested:
        yield from keys_of(inner, name)  # type: ignore[arg-type]


def comments(schema: type) -> dict[str, str]:
    """Field -> the comment above it; a field without a comment shares that of the field before it."""
    found: dict[str, str] = {}
    for part in reversed(schema.__mro__[:-1]):
        text: list[str] = []
        fresh = True  # the next comment line begins a new comment
        for line in inspect.getsource(part).splitlines():
            if comment := COMMENT.match(line):
                text = [comment[1]] if fresh else [*text, comment[1]]
                fresh = False
            elif named := FIELD.match(line):
                found[named[1]] = " ".join(text)
                fresh = True
    return found


def kind(annotation: Any) -> str:
    """A type as written in source code."""
    return (
        annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    )


def shown(value: Any) -> str:
    """A value as typed on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def allowed(name: str) -> tuple[str, ...]:
    """The values that `validate` accepts."""
    if name in CHOICES:
        return tuple(map(str, CHOICES[name]))
    if name in UNIT_INTERVAL:
        return ("0 to 1",)
    bounds = [f"at least {AT_LEAST[name]:g}"] if name in AT_LEAST else []
    bounds += [f"at most {AT_MOST[name]}"] if name in AT_MOST else []
    return (", ".join(bounds),) if bounds else ()


def choices() -> Iterator[tuple[str, str, str]]:
    """(group, choice, first sentence of the file's comment) of every packaged file in a group; groups that are added have a plus."""
    for path in sorted(Path(str(files("r2m_cli.conf"))).glob("*/*.yaml")):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("# @package")]
        head = []
        for line in lines:
            if not line.startswith("# ") or line.startswith("#  "):
                break
            head.append(line[2:])
        said = re.split(r"\.\s+(?=[A-Z])", " ".join(head) + " ", maxsplit=1)[0].strip().rstrip(".:")
        plus = "+" if path.parent.name in ADDED else ""
        yield plus + path.parent.name, path.stem, said
