"""Conversations as lists of messages: parsed from all common notations, and written in HH's."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from r2m_cli.conversation import Message

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
ROLE_OF = {"Human": "user", "Assistant": "assistant"}
TAG_OF = {role: tag for tag, role in ROLE_OF.items()}
_TURN = re.compile(r"\n\n(Human|Assistant):")
# A list of messages, or a single one with a known role, written as JSON or Python.
_WRITTEN_OUT = re.compile(
    r"""\s*(\[\s*\{\s*["'](role|content|from|value)["']\s*:"""
    r"""|\{\s*["'](role|from)["']\s*:\s*["'](""" + "|".join(ROLES) + r""")["']\s*,)"""
)
MEDIA = {"image": "an image", "video": "a video", "audio": "audio"}
# Keys that a message may have in addition to its text, and what would be lost without them.
_BESIDE = {"tool_calls": "tool calls", "function_call": "tool calls"}
_BESIDE |= dict.fromkeys(("reasoning_content", "reasoning", "thinking"), "reasoning")
_BESIDE |= {key + plural: what for key, what in MEDIA.items() for plural in ("", "s")}


_PLACEHOLDER = re.compile(
    r"\A<(image|video|audio)>\n|\n<(image|video|audio)>\Z"
)  # LLaVA's placeholders for content of another column


class Unfit(Exception):
    """A row that must be dropped; the message is the reason, the same text for the same fault."""


def parse_transcript(text: str) -> list[Message]:
    """Split an HH dialogue ("\\n\\nHuman: ...\\n\\nAssistant: ...") into messages; text before: a system one.

    White space around a turn belongs to the notation and is removed. Never fails: the caller checks the roles.
    Source: github anthropics/hh-rlhf; the inverse of `write_transcript`.
    """
    head, *rest = _TURN.split(text)
    system = [{"role": "system", "content": head.strip()}] if head.strip() else []
    turns = zip(rest[::2], rest[1::2], strict=True)
    return system + [{"role": ROLE_OF[tag], "content": body.strip()} for tag, body in turns]


def write_transcript(messages: Iterable[Message]) -> str:
    """Join messages into an HH dialogue; a system message comes first, without a header. Source: github anthropics/hh-rlhf."""
    return "".join(
        f"\n\n{TAG_OF[turn['role']]}: {turn['content']}" if turn["role"] in TAG_OF else turn["content"]
        for turn in messages
    )


def is_transcript(text: str) -> bool:
    """Whether a text is an HH dialogue, including one that has lost its two leading newlines."""
    return text.startswith("\n\nHuman:") or (text.lstrip().startswith("Human:") and "\n\nAssistant:" in text)


def plain(text: str) -> str:
    """The text with "\\n" as line end: files from Windows have "\\r\\n", which would hide HH's notation."""
    return text.replace("\r\n", "\n")


def text_in(value: str, key: str) -> str:
    """A column's text, see `plain`. Raises Unfit if it is a list of messages written as text, as in tables without lists."""
    if _WRITTEN_OUT.match(value):
        raise Unfit(f"{key!r} holds messages written out as text: store them as a list")
    return plain(value)


def turns_of(value: Any, key: str, cue: bool = False) -> list[Message]:
    """A string, a message or a list of messages -> messages with only role and content.

    Args:
        key: the column, for the reason.
        cue: leave out the "\\n\\nAssistant:" at the end of a prompt in HH's notation, which is not a turn.

    Raises:
        Unfit: neither text nor messages; or content that text cannot hold (tools, images).
    """
    if isinstance(value, str):
        text = text_in(value, key)
        asks = cue and "\n\nHuman:" in text and text.rstrip().endswith("\n\nAssistant:")  # also after a system message
        if not asks and not is_transcript(text):
            return [{"role": "user", "content": text}]
        turns = parse_transcript("\n\n" + text.lstrip())
        return turns[:-1] if cue and turns[-1] == {"role": "assistant", "content": ""} else turns
    messages = [value] if isinstance(value, dict) else value
    if not isinstance(messages, list):
        raise Unfit(f"{key!r} is neither text nor a list of messages")
    return [_message(turn, key) for turn in messages]


def check_unicode(texts: Iterable[str]) -> None:
    """Check for half a surrogate pair ("\\ud83d"), which JSON may hold but no tokenizer accepts. Raises Unfit."""
    try:
        for text in texts:
            text.encode("utf-8")
    except UnicodeEncodeError:
        raise Unfit("text with half a Unicode character") from None


def sound(prompt: Sequence[Message]) -> tuple[Message, ...]:
    """The prompt, if chat templates can render it: an optional system message, then user, assistant, user ...

    Raises:
        Unfit: any other roles, or an empty or invalid text.
    """
    turns = prompt[1:] if prompt and prompt[0]["role"] == "system" else prompt
    if not turns or turns[-1]["role"] != "user":
        raise Unfit("the prompt does not end with a user turn")
    if any(turn["role"] != ("user", "assistant")[index % 2] for index, turn in enumerate(turns)):
        raise Unfit("the roles do not alternate")
    if not all(turn["content"].strip() for turn in turns):
        raise Unfit("empty turn in the prompt")
    check_unicode(turn["content"] for turn in prompt)
    for turn in prompt:
        if found := _PLACEHOLDER.search(turn["content"]):
            raise Unfit(f"needs {MEDIA[found[1] or found[2]]} (the prompt says {found[0].strip()!r})")
    return tuple(prompt)


def _message(turn: Any, key: str) -> Message:
    """One message, in the usual form or ShareGPT's {"from": ..., "value": ...}."""
    if not isinstance(turn, dict):
        raise Unfit(f"{key!r} holds a message without text in 'role' and 'content'")
    for name, what in _BESIDE.items():
        if turn.get(name):
            raise Unfit(f"{key!r} holds {what} ({name!r})")
    named = "from" if turn.get("role") is None and turn.get("content") is None else "role"
    role, content = (
        (turn.get("from"), turn.get("value")) if named == "from" else (turn.get("role"), turn.get("content"))
    )
    if isinstance(content, list):
        content = "".join(_part(part, key) for part in content)
    if not isinstance(role, str) or not isinstance(content, str):
        raise Unfit(f"{key!r} holds a message without text in 'role' and 'content'")
    if role not in ROLES:
        raise Unfit(f"{key!r} holds the unknown role {role[:30]!r}")
    return {"role": ROLES[role], "content": plain(content)}


def _part(part: Any, key: str) -> str:
    """The text of one part of a message's content."""
    kind, text = (part.get("type"), part.get("text")) if isinstance(part, dict) else (None, None)
    if isinstance(kind, str) and kind not in ("text", "input_text", "output_text"):
        needed = next((what for name, what in MEDIA.items() if name in kind), f"content of type {kind[:30]!r}")
        raise Unfit(f"{key!r} needs {needed}")
    if not isinstance(text, str):
        raise Unfit(f"{key!r} holds a message without text in 'role' and 'content'")
    return text
