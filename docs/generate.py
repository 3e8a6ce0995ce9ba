"""Write docs/configuration.md and docs/metrics.md from the source: `make docs`. A test checks that they are up to date."""

import inspect
import re
from pathlib import Path

from r2m_cli.config.keys import COMMENT, Key, choices, keys_of, parts
from r2m_cli.config.values import CHOICES
from r2m_cli.monitor import catalogue

DOCS = Path(__file__).parent
NOTE = "<!-- Written by docs/generate.py from {source}: change it there, then `make docs`. -->\n\n"


def configuration() -> str:
    """The page of all configuration keys, a table for each part of the schema."""
    page = "# Configuration\n\n" + NOTE.format(source="src/r2m_cli/config/schema.py and check.py")
    page += (
        "Every key with its type, its default and its allowed values. The default is that of `r2m train`, before a group or an "
        "experiment changes it. Set a key with `key=value` and choose from a group with `group=choice`. Add an experiment, a "
        "world, a method or a sweep with `+experiment=`, `+world=`, `+method=` or `+sweep=`. "
        "`r2m train --cfg job` prints the resulting configuration of a command line.\n\n"
    )
    page += "## Groups\n\n| group | choice | meaning |\n| --- | --- | --- |\n"
    page += "".join(f"| `{group}` | `{choice}` | {_cell(what)} |\n" for group, choice, what in choices())
    for part, title, schema in parts():
        page += f"\n## {title}\n\n| key | type | default | meaning | values |\n| --- | --- | --- | --- | --- |\n"
        for key in keys_of(schema, part):
            cells = (f"`{key.name}`", f"`{key.type}`", f"`{key.default}`", key.meaning, _values(key))
            page += "| " + " | ".join(map(_cell, cells)) + " |\n"
    return page


def _values(key: Key) -> str:
    return ", ".join(f"`{value}`" if key.name in CHOICES else value for value in key.allowed)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def metric_page() -> str:
    """The page of all metrics, in the catalogue's order and under its headings."""
    page = "# Metrics\n\n" + NOTE.format(source="src/r2m_cli/monitor/catalogue.py")
    page += (
        "The metrics in `metrics.jsonl`, one JSON object per step (step 0 is the evaluation before training). A metric that was "
        "not measured in a step is missing from its row. The reduction combines the values of micro-batches and ranks: "
        "`mean` over all of them, `sum`, `max` over the ranks, or `last` (the same on every rank).\n"
    )
    heading = {}
    section = ""
    for line in inspect.getsource(catalogue).splitlines():
        if comment := COMMENT.match(line):
            section = comment[1]
        elif row := re.match(r'    \("([^"]+)", ', line):
            heading[row[1]] = section
    last = None
    for name, metric in catalogue.CATALOGUE.items():
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
