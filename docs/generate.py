"""Write docs/configuration.md and docs/metrics.md from the source: `make docs`. A test compares them with what this gives."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from r2m_cli import metrics
from r2m_cli.schema import Config, ReportConfig
from r2m_cli.values import AT_LEAST, CHOICES, UNIT_INTERVAL

DOCS = Path(__file__).parent
CONF = DOCS.parent / "conf"
NOTE = "<!-- Written by docs/generate.py from {source}: change it there, then `make docs`. -->\n\n"
FIELD = re.compile(r"    (\w+): ")
COMMENT = re.compile(r"    # (.*)")


@dataclass(frozen=True)
class Key:
    """One configuration key."""

    name: str  # dotted
    type: str
    default: str
    allowed: str
    meaning: str


def configuration() -> str:
    """The page of all configuration keys, a table for each part of the schema."""
    page = "# Configuration\n\n" + NOTE.format(source="src/r2m_cli/schema.py and validate.py")
    page += (
        "Every key with its type, its default (that of `r2m train` before a group or an experiment changes it) and the values "
        "that it takes. Set a key with `key=value`, choose from a group "
        "with `group=choice`, add an experiment, a world, a method or a sweep with `+experiment=`, `+world=`, `+method=`, "
        "`+sweep=`. "
        "`r2m train --cfg job` prints what a command line comes to.\n\n"
    )
    page += "## Groups\n\n| group | choice | what it is |\n| --- | --- | --- |\n"
    page += "".join(f"| `{group}` | `{choice}` | {what} |\n" for group, choice, what in choices())
    for part, title, schema in parts():
        page += f"\n## {title}\n\n| key | type | default | meaning | values |\n| --- | --- | --- | --- | --- |\n"
        for key in keys_of(schema, part):
            cells = (f"`{key.name}`", f"`{key.type}`", f"`{key.default}`", key.meaning, key.allowed)
            page += "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
    return page


def parts() -> Iterator[tuple[str, str, type]]:
    """(prefix, title, dataclass) of every table."""
    yield "", "The run itself", Config
    for field in fields(Config):
        if is_dataclass(field.type):
            yield f"{field.name}.", f"`{field.name}`", field.type  # type: ignore[misc]
    yield "", "`r2m report`", ReportConfig


def keys_of(schema: type, prefix: str) -> Iterator[Key]:
    """The keys of a dataclass, those of nested ones behind it; at the top (no prefix) the nested ones have tables of their own."""
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
    """Field -> the comment above it; a field without one shares that of the field before it."""
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
    """A type as one writes it."""
    return (
        annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    )


def shown(value: Any) -> str:
    """A default as one types it on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def allowed(name: str) -> str:
    """The values that `validate` lets through."""
    if name in CHOICES:
        return ", ".join(f"`{choice}`" for choice in CHOICES[name])
    if name in UNIT_INTERVAL:
        return "0 to 1"
    return f"at least {AT_LEAST[name]:g}" if name in AT_LEAST else ""


def choices() -> Iterator[tuple[str, str, str]]:
    """(group, choice, first sentence of the file's comment) of every configuration file in a group."""
    for path in sorted(CONF.glob("*/*.yaml")):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("# @package")]
        head = []
        for line in lines:
            if not line.startswith("# ") or line.startswith("#  "):
                break
            head.append(line[2:])
        said = re.split(r"\.\s+(?=[A-Z])", " ".join(head) + " ", maxsplit=1)[0].strip().rstrip(".:")
        plus = "+" if path.parent.name in ("experiment", "world", "method", "sweep", "debug") else ""
        yield plus + path.parent.name, path.stem, said.replace("|", "\\|")


def metric_page() -> str:
    """The page of all metrics, in the catalogue's order and under its headings."""
    page = "# Metrics\n\n" + NOTE.format(source="src/r2m_cli/metrics.py")
    page += (
        "What stands in `metrics.jsonl`, one JSON object a step (step 0: the evaluation before training). A value that was not "
        "measured in a step is missing from its row. The reduction says how the values of micro-batches and ranks become one: "
        "`mean` of all, `sum`, `max` over the ranks, `last` (the same on every rank).\n"
    )
    heading = {}
    section = ""
    for line in inspect.getsource(metrics).splitlines():
        if comment := COMMENT.match(line):
            section = comment[1]
        elif row := re.match(r'    \("([^"]+)", ', line):
            heading[row[1]] = section
    last = None
    for name, metric in metrics.CATALOGUE.items():
        if heading.get(name) != last:
            last = heading.get(name)
            page += f"\n## {(last or 'Others')[0].upper()}{(last or 'Others')[1:]}\n\n"
            page += "| metric | unit | reduction | meaning |\n| --- | --- | --- | --- |\n"
        page += (
            f"| `{name}` | {metric.unit or '-'} | {metric.reduction} | {metric.meaning.replace('|', chr(92) + '|')} |\n"
        )
    return page


PAGES = {"configuration.md": configuration, "metrics.md": metric_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
        print(DOCS / name)
