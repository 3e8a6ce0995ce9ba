"""Convert all common row forms to one: a prompt with a judged pair, with a reply to learn from, or alone.

A row is unfit if its columns hold more than its form can express (images, tools, a system message that contradicts the
prompt's), or something unknown. It is dropped with a reason, never read as something else.
"""

from dataclasses import dataclass, replace
from typing import Any

from r2m_cli.conversation import Message
from r2m_cli.data.columns import (
    DIALOGUES,
    NEEDS,
    PROMPTS,
    SAYS_MORE,
    SYSTEMS,
    Row,
    check_learnt,
    check_preferred,
    check_wanted,
    holds,
    holds_reply,
    with_choice,
)
from r2m_cli.data.messages import ROLES, Unfit, check_unicode, is_transcript, plain, sound, text_in, turns_of
from r2m_cli.data.rendered import is_prompt


@dataclass(frozen=True)
class Parsed:
    """One row.

    Attributes:
        prompt: ends with a user turn.
        replies: (chosen, rejected), (a reply to learn from,) or ().
        rests: the replies without the prompt, if they are plain texts that all begin with it; () if one does not; None if
            that does not apply.
    """

    prompt: tuple[Message, ...]
    replies: tuple[str, ...] = ()
    rests: tuple[str, ...] | None = None

    def without_prompt(self) -> "Parsed":
        """The row with the prompt removed from the beginning of its replies. Raises Unfit if that leaves an empty reply."""
        replies = self.rests or ()
        _check_replies(replies)
        return replace(self, replies=replies)


def parse(row: Any) -> Parsed:
    """Read a row of any known form.

    Raises:
        Unfit: the row is damaged, of an unknown form, or holds content that text cannot express.
    """
    if not isinstance(row, dict):
        raise Unfit("the row is not an object")
    found: Row = {key: value for key, value in row.items() if value is not None}
    for name, what in NEEDS.items():
        if name in found and holds(found[name]):
            raise Unfit(f"needs {what} (column {name!r})")
    found = with_choice(found)
    key, given = _prompt(found)
    if "chosen" in found or "rejected" in found:
        prompt, replies = _judged(found, given)
    else:
        prompt, replies = _unjudged(found, key, given, _listed(row))
    prompt = _with_system(found, prompt)
    if key:
        _check_said(found, key, prompt)
    parsed = Parsed(sound(prompt), replies)
    _check_replies(replies)
    return replace(parsed, rests=_rests(found, key, parsed))


def _prompt(row: Row) -> tuple[str, list[Message]]:
    """The prompt's column and its messages; ("", []) if the row has no prompt column."""
    whole = all(_is_conversation(row.get(side)) for side in ("chosen", "rejected"))
    key = next((name for name in ("prompt", *(() if whole else PROMPTS)) if name in row), "")
    text, more = row.get(key), row.get("input")
    if key == "instruction" and isinstance(text, str) and isinstance(more, str) and more.strip():
        return key, turns_of(f"{text}\n\n{more}", key)  # Alpaca's
    return key, turns_of(text, key, cue=True) if key else []


def _judged(row: Row, given: list[Message]) -> tuple[list[Message], tuple[str, ...]]:
    prompt, chosen = _side(row, "chosen", given)
    other, rejected = _side(row, "rejected", given)
    if prompt != other:
        raise Unfit("chosen and rejected have different prompts")
    check_preferred(row)
    return prompt, (chosen, rejected)


def _unjudged(row: Row, key: str, given: list[Message], listed: str) -> tuple[list[Message], tuple[str, ...]]:
    """A prompt with a single reply, or alone."""
    dialogue = next((name for name in DIALOGUES if row.get(name)), "")
    turns = turns_of(row[dialogue], dialogue) if dialogue and "completion" not in row else []
    if "completion" in row:
        reply = "completion"
    elif key == "instruction" and "output" in row:
        reply = "output"
    elif turns and turns[-1]["role"] == "assistant":
        reply, given = dialogue, [] if dialogue == key else given
    else:
        reply, given = "", given or turns
    if not reply and not given:
        raise Unfit(f"neither 'prompt' nor 'chosen' and 'rejected' (keys: {listed})")
    if not reply and any(holds_reply(name) and isinstance(row[name], str | list | dict) for name in row):
        raise Unfit(f"replies in an unknown form (keys: {listed})")
    if not reply:
        return given, ()
    check_wanted(row, "a reply")
    prompt, text = _side(row, reply, given)
    return prompt, (text,)


def _side(row: Row, key: str, given: list[Message]) -> tuple[list[Message], str]:
    """Prompt and reply of a column that holds a reply (`chosen`, `rejected`, ...), as text, message or conversation."""
    value = row.get(key)
    if value is None:
        raise Unfit(f"missing key {key!r}")
    if isinstance(value, str) and not is_transcript(text := text_in(value, key)):
        if not given and is_prompt(text):
            raise Unfit(f"{key!r} is a conversation in a chat template: store it as messages")
        if not given:
            raise Unfit("missing key 'prompt'")
        return given, text.strip()
    turns = turns_of(value, key)
    if not turns or turns[-1]["role"] != "assistant":
        raise Unfit(f"{key!r} does not end with an assistant turn")
    if not isinstance(value, str) and key != "rejected":
        check_learnt(value[-1] if isinstance(value, list) else value)
    context, reply = turns[:-1], turns[-1]["content"].strip()
    if not context or context[0]["role"] == "assistant":  # only the reply, or the turns after the prompt
        return given + context, reply
    if any(turn not in context for turn in given):
        raise Unfit(f"the conversation in {key!r} does not contain 'prompt'")
    return context, reply


def _with_system(row: Row, prompt: list[Message]) -> list[Message]:
    """The prompt with the row's system message, if that has its own column."""
    for name in SYSTEMS:
        text = row.get(name, "")
        if not isinstance(text, str):
            raise Unfit(f"{name!r} is not text")
        text = plain(text).strip()
        if text and (not prompt or prompt[0]["role"] != "system"):
            prompt = [{"role": "system", "content": text}, *prompt]
        elif text and prompt[0]["content"].strip() != text:
            raise Unfit(f"{name!r} is not the prompt's system message")
    return prompt


def _check_said(row: Row, key: str, prompt: list[Message]) -> None:
    """Check that columns which may extend the prompt are already part of it."""
    said = "".join(turn["content"] for turn in prompt)
    for name in SAYS_MORE:
        value = row.get(name) if name != key else None
        within = isinstance(value, str) and plain(value).strip() in said
        if isinstance(value, str | list | dict) and value and not within:
            raise Unfit(f"the text of {name!r} is not part of {key!r}: add it there, or remove the column")


def _check_replies(replies: tuple[str, ...]) -> None:
    if not all(replies):
        raise Unfit("empty reply")
    if len(replies) == 2 and replies[0] == replies[1]:
        raise Unfit("chosen equals rejected")
    check_unicode(replies)


def _rests(row: Row, key: str, parsed: Parsed) -> tuple[str, ...] | None:
    """See `Parsed.rests`. None for a prompt in HH's notation: a text that repeats it is a conversation."""
    prompt, replies = (
        row.get(key),
        [row[name] for name in ("chosen", "rejected", "completion", "output") if name in row],
    )
    texts = [*replies, *([prompt] if isinstance(prompt, str) else [])]
    if not key or not replies or not all(isinstance(text, str) and not is_transcript(plain(text)) for text in texts):
        return None
    rests = [_rest(reply, parsed.prompt) for reply in parsed.replies]
    return () if None in rests else tuple(rest for rest in rests if rest is not None)


def _rest(reply: str, prompt: tuple[Message, ...]) -> str | None:
    """The rest of a reply that begins with the prompt (all of its messages, or the last ones); else None.

    The prompt must end where a word ends: "Hi" is not the beginning of "High".
    """
    for first in range(len(prompt)):
        rest = reply
        for turn in prompt[first:]:
            text = turn["content"].strip()
            after = rest.lstrip()[len(text) :] if rest.lstrip().startswith(text) else None
            if after is None or (after and text and text[-1].isalnum() and not after[0].isspace()):
                break
            rest = after
        else:
            return rest.strip()
    return None


def _is_conversation(value: Any) -> bool:
    """Whether a side of a pair contains its own prompt."""
    if isinstance(value, str):
        return is_transcript(plain(value))
    first = value[0] if isinstance(value, list) and value else None
    role = (first.get("role") or first.get("from")) if isinstance(first, dict) else None
    return isinstance(role, str) and ROLES.get(role) in ("system", "user")


def _listed(row: dict[str, Any]) -> str:
    """The columns of a row, for the reason; only some of them if there are many."""
    names = [repr(name[:30])[1:-1] for name in row]
    return (", ".join(names[:12]) + (", ..." if len(names) > 12 else "")) or "none"
