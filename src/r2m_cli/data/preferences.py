"""Preference pairs and prompts: every row form in use, read into one; unfit rows are dropped and named."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from r2m_cli.data.readers import read_rows
from r2m_cli.errors import UserError

Message = dict[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}"""

ROLE_OF = {"Human": "user", "Assistant": "assistant"}
TAG_OF = {role: tag for tag, role in ROLE_OF.items()}
_TURN = re.compile(r"\n\n(Human|Assistant):")


@dataclass(frozen=True)
class Pair:
    """One judgement: of two replies to `prompt`, which ends with a user turn, `chosen` was preferred."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    where: str = field(default="", compare=False)  # "file:line" or "file:row N", as far as it came from a file


@dataclass(frozen=True)
class Dropped:
    """A row that was left out: where it stands ("file:line", or "file:row N" without lines), and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class Loaded:
    """What a data source gave.

    Attributes:
        source: the path or hub name as it was given.
        pairs: the labelled pairs, in the order of the rows.
        prompts: the prompt of every kept row, in order, later duplicates removed.
        dropped: the rows left out.
        rows: how many rows were read (kept + dropped).
        completions: prompt and reply of the rows with a `completion` in place of labels.
    """

    source: str
    pairs: list[Pair]
    prompts: list[tuple[Message, ...]]
    dropped: list[Dropped]
    rows: int = 0
    completions: list[tuple[tuple[Message, ...], str]] = field(default_factory=list)


class _Unfit(Exception):
    """A row that must be dropped; the message is the reason, the same text for the same fault."""


def load_preferences(path: str, split: str = "train", limit: int | None = None) -> Loaded:
    """Read preference pairs or bare prompts from a file, a folder or, if nothing local has the name, the hub.

    Row forms: HH (`chosen`, `rejected` as whole "\\n\\nHuman: ... \\n\\nAssistant: ..." dialogues);
    `prompt`/`chosen`/`rejected` as strings or message lists, where a list may repeat the prompt; lists
    without `prompt`; `prompt` alone, or with a `completion`, a reply to learn from that nobody judged. Replies are stripped.

    Args:
        path: see `readers.read_rows`.
        split: part of a data set that has parts; a single file ignores it.
        limit: stop after this many usable rows; None reads all.

    Raises:
        UserError: the source is missing or damaged, or no usable row is left.

    The forms of Anthropic/hh-rlhf, UltraFeedback-binarized and trl-lib/tldr.
    """
    if limit is not None and limit < 1:
        raise UserError(f"the limit on rows of {path} is {limit}; give 1 or more, or null for all")
    pairs: list[Pair] = []
    prompts: dict[tuple[tuple[str, str], ...], tuple[Message, ...]] = {}
    completions: list[tuple[tuple[Message, ...], str]] = []
    dropped: list[Dropped] = []
    kept = 0
    for where, row in read_rows(path, split):
        try:
            prompt, replies = _parse(row)
            completion = _completion(row, prompt) if replies is None else ""
        except _Unfit as fault:
            dropped.append(Dropped(where, str(fault)))
            continue
        prompts.setdefault(tuple((turn["role"], turn["content"]) for turn in prompt), prompt)
        if replies is not None:
            pairs.append(Pair(prompt, *replies, where))
        elif completion:
            completions.append((prompt, completion))
        kept += 1
        if kept == limit:
            break
    if not kept:
        raise UserError(_nothing_left(path, dropped))
    return Loaded(path, pairs, list(prompts.values()), dropped, kept + len(dropped), completions)


def describe(loaded: Loaded) -> list[str]:
    """Short lines for a person: how many rows were kept as what, then each reason for dropping with places.

    Whatever is left out is counted and said.
    """
    labelled = f"{len(loaded.pairs)} pairs kept" if loaded.pairs else "no pairs"
    labelled += f", {len(loaded.completions)} completions" if loaded.completions else ""
    first = f"{loaded.source}: {loaded.rows} rows: {labelled}, {len(loaded.prompts)} different prompts"
    lines = [f"{first}, {len(loaded.dropped)} dropped"]
    for reason, count in _by_frequency(loaded.dropped):
        places = [row.where.rpartition("/")[2] for row in loaded.dropped if row.reason == reason]
        shown = ", ".join(places[:3]) + (", ..." if count > 3 else "")
        lines.append(f"  dropped {count}: {reason} ({shown})")
    return lines


def parse_transcript(text: str) -> list[Message]:
    """Split an HH dialogue ("\\n\\nHuman: ...\\n\\nAssistant: ...") into messages; text before: a system one.

    White space around a turn belongs to the notation and goes. Never fails: the caller checks the roles.
    Source: github anthropics/hh-rlhf; the inverse of `write_transcript`.
    """
    head, *rest = _TURN.split(text)
    system = [{"role": "system", "content": head.strip()}] if head.strip() else []
    turns = zip(rest[::2], rest[1::2], strict=True)
    return system + [{"role": ROLE_OF[tag], "content": body.strip()} for tag, body in turns]


def write_transcript(messages: Iterable[Message]) -> str:
    """Join messages to an HH dialogue, a system message leading bare. Source: github anthropics/hh-rlhf."""
    return "".join(
        f"\n\n{TAG_OF[turn['role']]}: {turn['content']}" if turn["role"] in TAG_OF else turn["content"]
        for turn in messages
    )


def _parse(row: Any) -> tuple[tuple[Message, ...], tuple[str, str] | None]:
    """One row -> (prompt, (chosen, rejected)), or (prompt, None) without labels."""
    if not isinstance(row, dict):
        raise _Unfit("the row is not an object")
    given = [] if row.get("prompt") is None else _turns(row["prompt"], "prompt")
    if row.get("chosen") is None and row.get("rejected") is None:
        if not given:
            raise _Unfit(f"neither 'prompt' nor 'chosen' and 'rejected' (keys: {', '.join(row) or 'none'})")
        return _sound(given), None
    prompt, chosen = _side(row, "chosen", given)
    other, rejected = _side(row, "rejected", given)
    if prompt != other:
        raise _Unfit("chosen and rejected have different prompts")
    if not chosen or not rejected:
        raise _Unfit("empty reply")
    if chosen == rejected:
        raise _Unfit("chosen equals rejected")
    _check_unicode((chosen, rejected))
    return _sound(prompt), (chosen, rejected)


def _completion(row: dict[str, Any], prompt: Sequence[Message]) -> str:
    """The reply of a row without labels, "" if it has none."""
    if row.get("completion") is None:
        return ""
    _, reply = _side({"completion": row["completion"]}, "completion", list(prompt))
    _check_unicode([reply])
    return reply


def _side(row: dict[str, Any], key: str, given: list[Message]) -> tuple[list[Message], str]:
    """The prompt and the reply of `chosen` or `rejected`, whichever of the forms it has."""
    value = row.get(key)
    if value is None:
        raise _Unfit(f"missing key {key!r}")
    if isinstance(value, str) and not _is_transcript(value):
        if not given:
            raise _Unfit("missing key 'prompt'")
        return given, value.strip()
    turns = _turns(value, key)
    if not turns or turns[-1]["role"] != "assistant":
        raise _Unfit(f"{key!r} does not end with an assistant turn")
    context, reply = turns[:-1], turns[-1]["content"].strip()
    if not context or context[0]["role"] == "assistant":  # the reply alone, or what follows the prompt
        return given + context, reply
    if any(turn not in context for turn in given):
        raise _Unfit(f"the conversation in {key!r} does not hold 'prompt'")
    return context, reply


def _turns(value: Any, key: str) -> list[Message]:
    """A string or a list of messages -> messages, with nothing but role and content left."""
    if isinstance(value, str):
        if not _is_transcript(value):
            return [{"role": "user", "content": value}]
        turns = parse_transcript("\n\n" + value.lstrip())
        # a prompt in HH's notation ends with the cue "\n\nAssistant:", which is no turn
        return turns[:-1] if key == "prompt" and turns[-1] == {"role": "assistant", "content": ""} else turns
    if not isinstance(value, list):
        raise _Unfit(f"{key!r} is neither text nor a list of messages")
    turns = []
    for turn in value:
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise _Unfit(f"{key!r} holds a message without text in 'role' and 'content'")
        if role not in ("system", "user", "assistant"):
            raise _Unfit(f"{key!r} holds the unknown role {role!r}")
        turns.append({"role": role, "content": content})
    return turns


def _is_transcript(text: str) -> bool:
    """HH dialogues, also those that lost their two leading newlines on the way."""
    return text.startswith("\n\nHuman:") or (text.lstrip().startswith("Human:") and "\n\nAssistant:" in text)


def _sound(prompt: Sequence[Message]) -> tuple[Message, ...]:
    """The prompt, if chat templates can render it: maybe a system message, then user, assistant, user ..."""
    turns = prompt[1:] if prompt and prompt[0]["role"] == "system" else prompt
    if not turns or turns[-1]["role"] != "user":
        raise _Unfit("the prompt does not end with a user turn")
    if any(turn["role"] != ("user", "assistant")[index % 2] for index, turn in enumerate(turns)):
        raise _Unfit("the roles do not alternate")
    if not all(turn["content"].strip() for turn in turns):
        raise _Unfit("empty turn in the prompt")
    _check_unicode(turn["content"] for turn in prompt)
    return tuple(prompt)


def _check_unicode(texts: Iterable[str]) -> None:
    """JSON may hold half a surrogate pair ("\\ud83d"), which no tokenizer takes."""
    try:
        for text in texts:
            text.encode("utf-8")
    except UnicodeEncodeError:
        raise _Unfit("text with half a Unicode character") from None


def _by_frequency(dropped: Sequence[Dropped]) -> list[tuple[str, int]]:
    return Counter(row.reason for row in dropped).most_common()


def _nothing_left(path: str, dropped: Sequence[Dropped]) -> str:
    if not dropped:
        return f"{path}: holds no rows; each row needs 'prompt', 'chosen' and 'rejected', or 'prompt' alone"
    reason, count = _by_frequency(dropped)[0]
    first = next(row.where for row in dropped if row.reason == reason)
    faults = f"{len(dropped)} dropped, {count} of them: {reason} (first: {first})"
    return f"{path}: no usable row; {faults}; mend the rows or give other data"
