"""Preference pairs and prompts: all common row forms, converted to one; unfit rows are dropped and reported."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from r2m_cli.conversation import Message, Pair
from r2m_cli.data.messages import Unfit
from r2m_cli.data.readers import read_rows
from r2m_cli.data.rows import Parsed, parse
from r2m_cli.errors import UserError, printable


@dataclass(frozen=True)
class Dropped:
    """A row that was left out: its position ("file:line", or "file:row N" if there are no lines), and the reason."""

    where: str
    reason: str


@dataclass(frozen=True)
class Loaded:
    """The content of a data source.

    Attributes:
        source: the path or hub name as configured.
        pairs: the labelled pairs, in the order of the rows.
        prompts: the prompt of every kept row, in order, later duplicates removed.
        dropped: the rows left out.
        rows: how many rows were read (kept + dropped).
        completions: prompt and reply of the rows with a `completion` instead of labels.
        places: the position of the first row with each prompt.
    """

    source: str
    pairs: list[Pair]
    prompts: list[tuple[Message, ...]]
    dropped: list[Dropped]
    rows: int = 0
    completions: list[tuple[tuple[Message, ...], str]] = field(default_factory=list)
    places: list[str] = field(default_factory=list)


def load_preferences(path: str, split: str = "train", limit: int | None = None, subset: str | None = None) -> Loaded:
    """Read preference pairs or bare prompts from a file, a folder or, if nothing local has the name, the hub.

    Row forms: see `rows.parse` and docs/data.md. Replies are stripped.

    Args:
        path: see `readers.read_rows`.
        split: name of the split; ignored for a single file.
        limit: stop after this many usable rows; None reads all.
        subset: the configuration to use if the data set has several.

    Raises:
        UserError: the source is missing or damaged, or no usable row is left.

    It reads the forms of Anthropic/hh-rlhf, UltraFeedback-binarized, trl-lib/tldr and others.
    """
    if limit is not None and limit < 1:
        raise UserError(f"the limit on rows of {path} is {limit}; give 1 or more, or null for all")
    rows: list[tuple[str, Parsed]] = []
    dropped: list[Dropped] = []
    for place, row in read_rows(path, split, subset):
        try:
            rows.append((printable(place), parse(row)))
        except Unfit as fault:
            dropped.append(Dropped(printable(place), str(fault)))
        if len(rows) == limit:
            break
    rows = _without_prompts(rows, dropped)
    if not rows:
        raise UserError(_nothing_left(path, dropped))
    prompts: dict[tuple[tuple[str, str], ...], tuple[tuple[Message, ...], str]] = {}
    for place, row in rows:
        prompts.setdefault(tuple((turn["role"], turn["content"]) for turn in row.prompt), (row.prompt, place))
    return Loaded(
        source=printable(path),
        pairs=[Pair(row.prompt, *row.replies, place) for place, row in rows if len(row.replies) == 2],
        prompts=[prompt for prompt, _ in prompts.values()],
        places=[place for _, place in prompts.values()],
        dropped=dropped,
        rows=len(rows) + len(dropped),
        completions=[(row.prompt, row.replies[0]) for _, row in rows if len(row.replies) == 1],
    )


def describe(loaded: Loaded) -> list[str]:
    """Short lines for the user: how many rows were kept as what, then each reason for dropping rows with their positions.

    All rows that are left out are counted and reported.
    """
    labelled = f"{len(loaded.pairs)} pairs kept" if loaded.pairs else "no pairs"
    labelled += f", {len(loaded.completions)} completions" if loaded.completions else ""
    first = f"{loaded.source}: {loaded.rows} rows: {labelled}, {len(loaded.prompts)} different prompts"
    return [f"{first}, {len(loaded.dropped)} dropped", *reasons(loaded.dropped)]


def reasons(dropped: Sequence[Dropped]) -> list[str]:
    """A line for each reason, the most frequent first, with the first positions."""
    lines = []
    for reason, count in _by_frequency(dropped):
        places = [row.where.rpartition("/")[2] for row in dropped if row.reason == reason]
        shown = ", ".join(places[:3]) + (", ..." if count > 3 else "")
        lines.append(f"  dropped {count}: {reason} ({shown})")
    return lines


def _without_prompts(rows: list[tuple[str, Parsed]], dropped: list[Dropped]) -> list[tuple[str, Parsed]]:
    """Remove the prompt from replies that repeat it, as data for TRL once did.

    A single row is not enough evidence: a reply may begin with the words of a short question. So all rows with replies as
    texts must do it. If only some do, those are dropped, because either reading may be wrong.
    """
    asked = [row.rests for _, row in rows if row.rests is not None]
    if not any(asked):
        return rows
    kept = []
    for place, row in rows:
        try:
            if row.rests and not all(asked):
                raise Unfit("the replies begin with the prompt, but those of other rows do not")
            kept.append((place, row.without_prompt() if row.rests else row))
        except Unfit as fault:
            dropped.append(Dropped(place, str(fault)))
    return kept


def _by_frequency(dropped: Sequence[Dropped]) -> list[tuple[str, int]]:
    return Counter(row.reason for row in dropped).most_common()


def _nothing_left(path: str, dropped: Sequence[Dropped]) -> str:
    if not dropped:
        return f"{path}: contains no rows; each row needs 'prompt', 'chosen' and 'rejected', or 'prompt' alone"
    reason, count = _by_frequency(dropped)[0]
    first = next(row.where for row in dropped if row.reason == reason)
    faults = f"{len(dropped)} dropped, {count} of them: {reason} (first: {first})"
    return f"{path}: no usable row; {faults}; docs/data.md lists the supported row forms"
