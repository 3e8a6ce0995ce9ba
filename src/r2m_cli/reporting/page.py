"""The page of a report: one self-contained HTML file that makes no network requests."""

import secrets
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from r2m_cli import __version__
from r2m_cli.files.jsonl import replace_text
from r2m_cli.reporting import table
from r2m_cli.reporting.charts import charts, dashes
from r2m_cli.reporting.conclusions import conclusion, differences, lede, warnings
from r2m_cli.reporting.groups import COLOURS, grouped, truth_of
from r2m_cli.reporting.runs import Run
from r2m_cli.reporting.samples import samples_of

# The labels' colours on a dark page: as on a light one, except those that would be hard to see on black.
ON_DARK = {"#0072B2": "#4C9FD8", "#56B4E9": "#9AD4F7", "#000000": "#F2F2F2"}


def write(text: str, path: Path) -> Path:
    """Write a page to `path` atomically; returns the path."""
    replace_text(path, text)
    return path


def render(runs: list[Run]) -> str:
    """The page of `runs` as text.

    All text from runs is escaped: as HTML by jinja, as JSON in a script element by jinja's `tojson`. In addition, the page's
    content security policy forbids all requests, and all scripts except its own two, which carry a nonce.

    Raises:
        UserError: the runs hold neither gold nor reward, or a samples.jsonl is damaged.
    """
    groups = grouped(runs)
    truth = truth_of(groups)
    conclusions = [conclusion(group) for group in groups]
    drawn = charts(groups, conclusions, truth)
    samples = [samples_of(place, group, conclusions[place].peak) for place, group in enumerate(groups)]
    environment = Environment(
        loader=PackageLoader("r2m_cli.reporting", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        nonce=secrets.token_urlsafe(16),
        version=__version__,
        made=f"{datetime.now():%Y-%m-%d %H:%M}",
        groups=groups,
        conclusions=conclusions,
        lede=lede(conclusions),
        truth=truth,
        charts=drawn,
        figures=[{"key": chart.key, "data": chart.traces, "layout": chart.layout} for chart in drawn],
        samples=[some for some in samples if some is not None],
        differences=differences(groups),
        warnings=warnings(groups),
        numbers=_numbers(runs),
        series=[_look(place) for place in range(len(groups))],
        css=_own("page.css"),
        js=_own("page.js"),
        plotly=_plotly(),
    )


def _numbers(runs: list[Run]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, headings, rows) of the tables of numbers, the means over seeds first if there are any."""
    parts = table.parts(table.summarise(runs))
    return [(title or "Every run", *table.texts(part)) for title, part in reversed(parts)]


def _look(place: int) -> dict[str, str]:
    """Colour and line style of the label at index `place`."""
    colour = COLOURS[place % len(COLOURS)]
    return {"light": colour, "dark": ON_DARK.get(colour, colour), "dash": dashes(place)}


def _own(name: str) -> Markup:
    """A file of the template, inserted into the page unescaped."""
    return Markup(files("r2m_cli.reporting").joinpath("template", name).read_text(encoding="utf-8"))


def _plotly() -> Markup:
    """plotly.js, minified: about 4.5 MB, most of the page."""
    from plotly.offline import get_plotlyjs  # type: ignore[import-untyped, unused-ignore]

    source: Any = get_plotlyjs()
    return Markup(source)
