"""The lines of a run's files; invalid lines are skipped and reported, as when a run is resumed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from r2m_cli.console import tell
from r2m_cli.files.jsonl import left_out, parsed, row_of

Row = dict[str, Any]  # a line of samples.jsonl
T = TypeVar("T")


def read_lines(path: Path, parse: Callable[[bytes], T], what: str) -> list[T]:
    """See `jsonl.parsed`; a line on stderr reports those that are not `what`."""
    rows, bad = parsed(path, parse)
    if bad:
        tell(left_out(path, bad, what))
    return rows


def by_step(path: Path) -> dict[int, list[Row]]:
    """The rows of a samples.jsonl by step, prompts as text."""
    found: dict[int, list[Row]] = {}
    for step, row in read_lines(path, _sample, "a sample with step, prompt and response"):
        found.setdefault(step, []).append(row)
    return found


def transcript(prompt: Any) -> str:
    """A prompt as text: a single message unchanged, a conversation with the role before each message."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return str(prompt[0]["content"])
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _sample(line: bytes) -> tuple[int, Row]:
    row = row_of(line)
    if not isinstance(row["response"], str):
        raise TypeError("response")
    return row["step"], row | {"prompt": _text(transcript(row["prompt"])), "response": _text(row["response"])}


def _text(text: str) -> str:
    """The text with a question mark for half of a surrogate pair, which cannot be written to a file."""
    return text.encode("utf-8", "replace").decode("utf-8")
