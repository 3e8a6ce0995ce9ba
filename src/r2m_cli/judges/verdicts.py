"""The question to a language model about two responses, the parser of its answer, and the file of verdicts."""

import json
import re
from pathlib import Path

from r2m_cli.conversation import Prompt

VALUE = {"A": 1.0, "tie": 0.5, "B": 0.0}  # verdict -> preference for the response that was shown as A

_BRACKETED = re.compile(r"\[\[\s*(A|B|tie)\s*\]\]", re.IGNORECASE)
_WHOLE_LINE = re.compile(
    r"(?:(?:the )?(?:better |best |final )?(?:response|answer|option|verdict|winner)(?: is)?\W*)?"
    r"(?:response )?(A|B|(?<!\w)(?:a )?tie)",
    re.IGNORECASE,
)
_IN_TEXT = re.compile(r"\b(?:([AB])|((?i:tie)))\b")
_ARTICLE = re.compile(r"\bA (?!wins|is (?:\w+ )?better)\w")


def question(prompt: Prompt, a: str, b: str) -> str:
    """The question about two responses to `prompt`."""
    turns = "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in prompt)
    return (
        "Below are a conversation and two responses to its last message. Which response is better?\n\n"
        f"[Conversation]\n{turns}\n\n[Response A]\n{a}\n\n[Response B]\n{b}\n\n[End of the responses]\n\n"
        "Which response is better? Answer with exactly one of: A, B, tie."
    )


def parse_verdict(answer: str) -> str | None:
    """The verdict "A", "B" or "tie" in an answer of any form; None if there is no verdict, or more than one."""
    text = answer.rpartition("</think>")[2].strip()
    if not text or "<think>" in text:
        return None
    found = {match.lower() for match in _BRACKETED.findall(text)}
    if not found and (line := _WHOLE_LINE.fullmatch(text.splitlines()[0].strip(" \t*_`\"'()[]{}<>.,:;!"))):
        found = {line[1].lower().removeprefix("a ")}
    if not found:
        found = {(letter or tie).lower() for letter, tie in _IN_TEXT.findall(text)}
        if found == {"a"} and not _IN_TEXT.search(_ARTICLE.sub("", text)):
            return None  # "A good reply would be ...": an article, not a verdict
    return {"a": "A", "b": "B", "tie": "tie"}[found.pop()] if len(found) == 1 else None


def read(path: Path) -> dict[str, str]:
    """The verdicts in a file, by the id of their question; damaged lines (from a killed process) are left out.

    The file may be missing. Its folder is created, and an incomplete last line is terminated.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = path.read_bytes() if path.exists() else b""
    if not content.endswith(b"\n") and content:
        with path.open("ab", buffering=0) as file:
            file.write(b"\n")  # otherwise the next verdict would be appended to the incomplete line
    verdicts = {}
    for line in content.split(b"\n"):
        try:
            row = json.loads(line)
            verdicts.update({row["id"]: row["verdict"]} if row["verdict"] in VALUE else {})
        except (ValueError, LookupError, TypeError):
            continue
    return verdicts


def append(path: Path, identity: str, verdict: str) -> None:
    """Append a verdict to the file with one unbuffered write, so that lines of several ranks do not mix."""
    with path.open("ab", buffering=0) as file:
        file.write(json.dumps({"id": identity, "verdict": verdict}).encode() + b"\n")
