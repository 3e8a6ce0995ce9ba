"""What is said: a message, a prompt, and a labelled pair of replies to one. Every part of r2m speaks of these."""

from dataclasses import dataclass, field

Message = dict[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}"""

Prompt = tuple[Message, ...]
"""The messages that a reply answers; the last is the user's."""


@dataclass(frozen=True)
class Pair:
    """One judgement: of two replies to `prompt`, which ends with a user turn, `chosen` was preferred."""

    prompt: Prompt
    chosen: str
    rejected: str
    where: str = field(default="", compare=False)  # "file:line" or "file:row N", as far as it came from a file
