"""Sample responses for the page: from the start of a run, from gold's peak, and from the end."""

import math
from dataclasses import dataclass
from typing import Any

from r2m_cli.reporting.groups import Group
from r2m_cli.reporting.lines import Row
from r2m_cli.reporting.runs import Run, finite
from r2m_cli.text import fixed

PROMPTS = 3  # shown per run
OTHERS = 3  # further responses to a prompt, collapsed on the page
SCORES = {"reward": "live", "reward_frozen": "proxy", "gold": "gold", "kl": "KL"}


@dataclass(frozen=True)
class Response:
    """A response and its scores."""

    text: str
    finished: bool  # False: cut off at the length limit
    scores: list[tuple[str, str]]  # (word, number) for each score in SCORES that was measured


@dataclass(frozen=True)
class Cell:
    """The responses to one prompt at one step, the one with the highest live reward first."""

    prompt: str
    best: Response
    others: list[Response]


@dataclass(frozen=True)
class Column:
    """One moment of the run."""

    title: str
    step: int
    note: str  # set if the samples are from another step than the intended one


@dataclass(frozen=True)
class Samples:
    """Responses of one run of a label, moment by moment."""

    place: int  # index of the label among the groups
    name: str
    seed: Any
    columns: list[Column]
    rows: list[tuple[str | None, list[Cell | None]]]  # (prompt, if the columns share it; a cell per column)


def samples_of(place: int, group: Group, peak: int | None) -> Samples | None:
    """Samples of the group's first run, from the logged steps nearest to its start, gold's peak and its end.

    Prompts that occur at several of these steps come first; if there are too few, each column shows its own prompts. None if
    the run logged no samples.

    Args:
        peak: step of gold's peak, None if gold is not known.
    """
    run = group.runs[0]
    by_step = run.samples
    if not by_step:
        return None
    columns = _columns(sorted(by_step), run, peak)
    asked = [_by_prompt(by_step[column.step]) for column in columns]
    return Samples(place, group.name, run.seed, columns, _rows(asked))


def _columns(steps: list[int], run: Run, peak: int | None) -> list[Column]:
    """Start, gold's peak and end, if they are different steps; without gold, the middle step replaces the peak."""
    first, *between, last = steps if len(steps) > 1 else [*steps, *steps]
    middle, word = (peak, "Gold's peak") if peak is not None else (steps[len(steps) // 2], "Middle")
    columns = [Column("Start", first, "")]
    if between and first < middle < last:
        nearest = min(between, key=lambda step: abs(step - middle))
        columns.append(Column(word, nearest, "" if nearest == middle else f"nearest logged to {middle}"))
    if last > first:
        end = int(run.metrics.index[-1])
        columns.append(Column("End", last, "" if last == end else f"last logged of {end}"))
    return columns


def _by_prompt(rows: list[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["prompt"], []).append(row)
    return found


def _rows(asked: list[dict[str, list[Row]]]) -> list[tuple[str | None, list[Cell | None]]]:
    times = {prompt: sum(prompt in column for column in asked) for column in asked for prompt in column}
    everywhere = [prompt for prompt, count in times.items() if count == len(asked) > 1]
    twice = [prompt for prompt, count in times.items() if 1 < count < len(asked)]
    shared = [*everywhere, *twice[:1]][:PROMPTS]  # one row with a gap is enough
    rows: list[tuple[str | None, list[Cell | None]]] = [
        (prompt, [_cell(prompt, column[prompt]) if prompt in column else None for column in asked]) for prompt in shared
    ]
    own = [[prompt for prompt in column if prompt not in shared] for column in asked]
    for number in range(PROMPTS - len(shared)):
        cells = [
            _cell(prompts[number], column[prompts[number]]) if number < len(prompts) else None
            for prompts, column in zip(own, asked)
        ]
        if any(cells):
            # A single column has no other to share prompts with, but they are row headings all the same.
            alone = cells[0].prompt if len(cells) == 1 and cells[0] else None
            rows.append((alone, cells))
    return rows


def _cell(prompt: str, rows: list[Row]) -> Cell:
    ranked = sorted(rows, key=_live, reverse=True)
    first, *others = (_response(row) for row in ranked[: 1 + OTHERS])
    return Cell(prompt, first, others)


def _live(row: Row) -> float:
    value = finite(row.get("reward"))
    return value if value == value else -math.inf


def _response(row: Row) -> Response:
    scores = [(word, fixed(value)) for name, word in SCORES.items() if (value := finite(row.get(name))) == value]
    return Response(row["response"].strip(), bool(row.get("finished", True)), scores)
