"""Texts that are written in a chat template already: a model's own template would be put around them a second time."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from r2m_cli.data.chat_template import PROBE

if TYPE_CHECKING:
    from r2m_cli.data.source import Source
    from r2m_cli.data.template import ChatFormat

_BAR = "[|｜]"  # DeepSeek's are wide
_BEGIN = rf"(?:<s>|<bos>|<{_BAR}(?:begin_of_text|startoftext|begin▁of▁sentence){_BAR}>|\[gMASK\]<sop>)?\s*"
_ROLE = r"(?:system|developer|user|human|prompter|assistant|model)"
# What opens a turn: ChatML, Llama 3 and 4, Gemma, Zephyr and Phi, GPT-OSS, Granite, Cohere, Llama 2 and Mistral.
_HEADER = (
    rf"(?:<\|im_start\|>{_ROLE}|<\|start_header_id\|>{_ROLE}|<\|header_start\|>{_ROLE}|<start_of_turn>{_ROLE}"
    rf"|<{_BAR}{_ROLE}{_BAR}>|<\|start\|>{_ROLE}|<\|start_of_role\|>{_ROLE}|<\|START_OF_TURN_TOKEN\|>"
    r"|\[INST\]|\[SYSTEM_PROMPT\])"
)
# What closes one, or a text.
_END = (
    rf"(?:<\|im_end\|>|<\|eot_id\|>|<\|eot\|>|<end_of_turn>|<\|end\|>|<\|endoftext\|>|<\|end_of_text\|>|<\|end_of_turn\|>"
    rf"|<\|return\|>|<\|END_OF_TURN_TOKEN\|>|<{_BAR}end▁of▁sentence{_BAR}>|</s>|<eos>|\[/INST\])"
)
_OPENS = re.compile(_BEGIN + _HEADER, re.IGNORECASE)
_ENDS = re.compile(rf"{_END}\Z", re.IGNORECASE)
_CUE = re.compile(rf"{_HEADER}[^\n]{{0,40}}\s*(?:<think>\s*(?:</think>)?)?\Z", re.IGNORECASE)  # the reply's header
# Alpaca's, Vicuna's and others that have no tokens.
_WORDS = (
    ("### Instruction:", "### Response:"),
    ("USER:", "ASSISTANT:"),
    ("User:", "Assistant:"),
    ("Human:", "Assistant:"),
)
_TAIL = 120  # characters in which a text closes
SHOWN = 40  # characters of the first one


def is_prompt(text: str) -> bool:
    """Whether a prompt is rendered: it opens as one and closes as one. A text that quotes a template's marks is not."""
    text = text.strip()
    if any(first in text and text.endswith(last) for first, last in _WORDS):
        return True
    opened = _OPENS.match(text)
    tail = text[opened.end() :][-_TAIL:] if opened else ""
    return bool(_ENDS.search(tail) or _CUE.search(tail))


def is_reply(text: str) -> bool:
    """Whether a reply closes with an end token, a header before it or not. Of `<s>...</s>` in HTML it is no token."""
    text = text.strip()
    end = _ENDS.search(text[-_TAIL:])
    return bool(end) and not _ENDS.fullmatch(text) and not (text.endswith("</s>") and "<s>" in text[1:])


def rendered_notes(source: "Source", chats: Sequence["ChatFormat"]) -> list[str]:
    """A note for the person on rows that are rendered; none if there are none, or no model writes more than the texts.

    Args:
        chats: of every model that is to read the prompts.
    """
    if source.world is not None or all(chat.prompt_text(PROBE) == PROBE[0]["content"] for chat in chats):
        return []
    found: dict[str, str] = {}  # place -> the text
    for place, prompt, replies in _rows(source):
        texts = [turn["content"] for turn in prompt if is_prompt(turn["content"])] + [r for r in replies if is_reply(r)]
        if texts:
            found.setdefault(place, texts[0])
    if not found:
        return []
    place = next((place for place in source.places.values() if place in found), next(iter(found)))
    text = found[place] if len(found[place]) <= SHOWN else f"{found[place][:SHOWN]}..."
    return [
        f"rows already written in a chat template: {len(found)} (the first: {place}, {text!r}); the models' own is put around "
        "them again. Store the bare texts, or messages; or have them read as they are: policy.template=plain reward.template=plain"
    ]


def _rows(source: "Source") -> Iterable[tuple[str, Sequence[dict[str, str]], tuple[str, ...]]]:
    """Place, prompt and replies of all that is read."""
    for prompt in (*source.prompts, *source.eval_prompts):
        yield source.place(prompt), prompt, ()
    for pair in (*source.pairs, *source.heldout_pairs):
        yield pair.where, pair.prompt, (pair.chosen, pair.rejected)
    for prompt, reply in (*source.demonstrations, *source.references):
        yield source.place(prompt), prompt, (reply,)
