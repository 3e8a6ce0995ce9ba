"""The types of conversations: a message, a prompt, and a labelled pair of replies to a prompt. Used throughout r2m."""

from dataclasses import dataclass, field

Message = dict[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}"""

Prompt = tuple[Message, ...]
"""The messages before a reply; the last one is the user's."""


@dataclass(frozen=True)
class Pair:
    """Two replies to `prompt`, of which `chosen` was preferred. The prompt ends with a user turn."""

    prompt: Prompt
    chosen: str
    rejected: str
    where: str = field(default="", compare=False)  # "file:line" or "file:row N" if it came from a file
