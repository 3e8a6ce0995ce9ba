"""Detect texts that are already rendered with a chat template: a model's own template would be applied on top."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from r2m_cli.conversation import Prompt
from r2m_cli.data.chat_template import PROBE

if TYPE_CHECKING:
    from r2m_cli.data.template import ChatFormat

Row = tuple[str, Prompt, Sequence[str]]  # its position, its prompt, its replies

_BAR = "[|｜]"  # DeepSeek's are full-width
_BEGIN = rf"(?:<s>|<bos>|<{_BAR}(?:begin_of_text|startoftext|begin▁of▁sentence){_BAR}>|\[gMASK\]<sop>)?\s*"
_ROLE = r"(?:system|developer|user|human|prompter|assistant|model)"
# Tokens that open a turn: ChatML, Llama 3 and 4, Gemma, Zephyr and Phi, GPT-OSS, Granite, Cohere, Llama 2 and Mistral.
_HEADER = (
    rf"(?:<\|im_start\|>{_ROLE}|<\|start_header_id\|>{_ROLE}|<\|header_start\|>{_ROLE}|<start_of_turn>{_ROLE}"
    rf"|<{_BAR}{_ROLE}{_BAR}>|<\|start\|>{_ROLE}|<\|start_of_role\|>{_ROLE}|<\|START_OF_TURN_TOKEN\|>"
    r"|\[INST\]|\[SYSTEM_PROMPT\])"
)
# Tokens that close a turn or a text.
_END = (
    rf"(?:<\|im_end\|>|<\|eot_id\|>|<\|eot\|>|<end_of_turn>|<\|end\|>|<\|endoftext\|>|<\|end_of_text\|>|<\|end_of_turn\|>"
    rf"|<\|return\|>|<\|END_OF_TURN_TOKEN\|>|<{_BAR}end▁of▁sentence{_BAR}>|</s>|<eos>|\[/INST\])"
)
_OPENS = re.compile(_BEGIN + _HEADER, re.IGNORECASE)
_ENDS = re.compile(rf"{_END}\Z", re.IGNORECASE)
_CUE = re.compile(rf"{_HEADER}[^\n]{{0,40}}\s*(?:<think>\s*(?:</think>)?)?\Z", re.IGNORECASE)  # the reply's header
# Alpaca's, Vicuna's and other templates without special tokens.
_WORDS = (
    ("### Instruction:", "### Response:"),
    ("USER:", "ASSISTANT:"),
    ("User:", "Assistant:"),
    ("Human:", "Assistant:"),
)
_TAIL = 120  # characters at a text's end that are searched for closing tokens
SHOWN = 40  # characters of the first rendered text, in the note


def is_prompt(text: str) -> bool:
    """Whether a prompt is rendered, at both its beginning and its end. A text that merely quotes template tokens is not."""
    text = text.strip()
    if any(first in text and text.endswith(last) for first, last in _WORDS):
        return True
    opened = _OPENS.match(text)
    tail = text[opened.end() :][-_TAIL:] if opened else ""
    return bool(_ENDS.search(tail) or _CUE.search(tail))


def is_reply(text: str) -> bool:
    """Whether a reply ends with an end token, with or without a header. The end of `<s>...</s>` in HTML is not an end token."""
    text = text.strip()
    end = _ENDS.search(text[-_TAIL:])
    return bool(end) and not _ENDS.fullmatch(text) and not (text.endswith("</s>") and "<s>" in text[1:])


def rendered_notes(rows: Iterable[Row], chats: Sequence["ChatFormat"]) -> list[str]:
    """A note for the user on rows that are already rendered; none if there are none, or if no model uses a template.

    Args:
        rows: a file's, in its order as far as that is known.
        chats: the formats of all models that will read the prompts.
    """
    if all(chat.prompt_text(PROBE) == PROBE[0]["content"] for chat in chats):
        return []
    found: dict[str, str] = {}  # place -> the text
    for place, prompt, replies in rows:
        texts = [turn["content"] for turn in prompt if is_prompt(turn["content"])] + [r for r in replies if is_reply(r)]
        if texts:
            found.setdefault(place, texts[0])
    if not found:
        return []
    place = next(iter(found))
    text = found[place] if len(found[place]) <= SHOWN else f"{found[place][:SHOWN]}..."
    return [
        f"rows already rendered with a chat template: {len(found)} (the first: {place}, {text!r}); the models' own template is "
        "applied on top. Store plain texts or messages; or set policy.template=plain reward.template=plain to read them unchanged"
    ]
