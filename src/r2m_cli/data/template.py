"""One formatter for every model: messages -> the text and token ids that this tokenizer's model was made for.

Text crosses between models, token ids never do: the policy's reply is decoded, and the reward model's own
ChatFormat renders and encodes it again.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r2m_cli.conversation import Message
from r2m_cli.data.chat_template import PROBE, REPLY, ChatTemplate
from r2m_cli.data.forms import RECORD, Choice, joined, prompt_in, write_record
from r2m_cli.data.special_tokens import boundary, choose_pad, encode, end_token, own_specials
from r2m_cli.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REMEMBERED = (
    2**14
)  # texts whose ids are kept: rendering and encoding labelled pairs anew at every look costs more than the models


class ChatFormat:
    """How one tokenizer sees conversations: by its chat template, or in a form of `forms.py`.

    In these the reply follows after one space (unless white space is there), the tokenizer's own special tokens stand
    around the whole, and EOS closes it; `pair` gives prompt and reply to the tokenizer as its two texts, and adds nothing.

    Attributes:
        tokenizer: as given.
        name: whose it is ("policy", "reward model"), for messages to the user.
        choice: as given; by default the tokenizer decides.
        eos_ids: the tokens that end a reply: EOS, the one that closes the template's assistant turn, and `ends`.
        pad_id: filler that ends no reply (EOS itself only if the tokenizer offers nothing else). It is always
            masked, yet a pool that looks for pad tokens would otherwise lose the closing EOS.
        boundary: with `pair`, the token that separates the two texts, where the tokenizer numbers them (token_type_ids).

    Args:
        vocabulary: rows of the model's input embeddings, if known: a padding token without a row is never used, and any
            other is refused.
        ends: further tokens that end a reply, those at which the model's own generation stops.

    Raises:
        UserError: the template cannot be rendered, drops what it is given, or changes a prompt once a reply follows; a
            policy's has no generation prompt; an end token is asked for and there is none.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        name: str = "policy",
        choice: Choice | None = None,
        vocabulary: int | None = None,
        ends: Iterable[int] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.name = name
        self.choice = choice or Choice()
        self._label = f"{name} tokenizer ({tokenizer.name_or_path or type(tokenizer).__name__})"
        self._template: ChatTemplate | None = None
        self._lead: list[int] = []  # special tokens before the text (template: they stand in the text)
        if self.choice.form is None and tokenizer.chat_template is not None:
            self._template = ChatTemplate(tokenizer, self._label, self.key, writes=name.startswith("policy"))
            closing = self._closing_token()
        else:
            self._lead, closing = own_specials(tokenizer)
        self._template_closes = bool(closing) and self._template is not None
        self._close = closing or end_token(tokenizer)
        self._tail = self._last([] if self._template is not None else closing)
        self.eos_ids: set[int] = {*end_token(tokenizer), *self._close[:1], *ends}
        self.pad_id = choose_pad(tokenizer, vocabulary, self.eos_ids)
        self.boundary = boundary(tokenizer, self._label) if self.choice.form == "pair" else None
        self._known = lru_cache(REMEMBERED)(self._ids)
        self.conversation_ids(PROBE, REPLY)  # tokens of the template that have no embedding are refused at once

    @property
    def key(self) -> str:
        """What changes the form, for messages to the user."""
        keys = {"policy": "policy.template", "reward model": "reward.template"}
        return keys.get(self.name, f"a file {RECORD} in its folder")

    def note(self) -> str | None:
        """Where the tokenizer's own template is not what is used, how conversations are written; for the person."""
        if self._template is not None:
            return None
        shown = self._decode(self.conversation_ids(PROBE, REPLY))
        why = "its tokenizer has no chat template" if self.choice.form is None else f"form {self.choice.form}"
        asked = PROBE[0]["content"]
        return f"the {self.name} reads {asked!r} answered {REPLY!r} as {shown!r} ({why}; {self.key} changes it)"

    def save(self, folder: Path) -> None:
        """Write the tokenizer, and what else is needed to read conversations in the same way, beside a model."""
        self.tokenizer.save_pretrained(folder)
        write_record(folder, self.choice)

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The prompt as text, up to where the reply starts (generation prompt included).

        Raises:
            UserError: the template refuses the messages (a system role, roles out of turn, ...).

        Source: transformers' `apply_chat_template`; without a template `forms.prompt_in`.
        """
        if self._template is not None:
            return self._template.prompt(messages)
        return prompt_in(self.choice.form, messages)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of `prompt_text`, [P]: what the policy continues. Raises, source: as `prompt_text`."""
        return list(self._known("prompt", _frozen(messages), ""))

    def conversation_ids(self, messages: Sequence[Message], response: str) -> list[int]:
        """Token ids of prompt and response with the turn closed, [S]: what a reward model reads.

        With a template this is exactly what the template renders (also a newline behind the closing token, as
        reward models are trained on it); EOS is added only where nothing closes the turn, or as reward.end_token says.

        Raises:
            UserError: the template refuses the messages.

        A reward model that was fitted with an end token must not be scored without: there is one formatter for both.
        """
        return list(self._known("conversation", _frozen(messages), response))

    def cut(self, ids: list[int], limit: int) -> list[int]:
        """At most `limit` of a conversation's ids: the oldest go, but the token that opens every text ([CLS], BOS) stays."""
        if len(ids) <= limit:
            return ids
        opens = ids[:1] if ids[0] in (self.tokenizer.cls_token_id, self.tokenizer.bos_token_id) else []
        return opens + ids[len(ids) - limit + len(opens) :]

    def response_ids(self, messages: Sequence[Message], response: str) -> list[int]:
        """Token ids to put behind `prompt_ids`, [R], up to the token that ends the turn, as a policy samples.

        `prompt_ids + response_ids` decodes to the conversation, less a template's newline after the turn.

        Raises:
            UserError: the template refuses the messages, or changes the prompt once a reply follows.

        The hidden states are those of prompt and response in one sequence (arXiv 2601.22664, step 1).
        """
        return list(self._known("response", _frozen(messages), response))

    def _ids(self, what: str, frozen: tuple[tuple[tuple[str, str], ...], ...], response: str) -> array[int]:
        """What the public methods give, as compactly as it is kept. Raises UserError for a token without an embedding."""
        ids = self._made(what, frozen, response)
        highest = max(ids, default=0)
        if self.vocabulary is not None and highest >= self.vocabulary:
            token = self.tokenizer.convert_ids_to_tokens(int(highest))
            raise UserError(
                f"{self._label}: its token {token!r} has the number {highest}, and the model's embeddings have "
                f"{self.vocabulary} rows; model.resize_token_embeddings(len(tokenizer)) and training give it one"
            )
        return ids

    def _made(self, what: str, frozen: tuple[tuple[tuple[str, str], ...], ...], response: str) -> array[int]:
        messages: list[Any] = [dict(items) for items in frozen]
        if what == "prompt":
            return array("q", self._lead + self._encode(self.prompt_text(messages)))
        if what == "response":
            return array("q", self._response_ids(messages, response))
        if self.choice.form == "pair":
            both = self.tokenizer(self.prompt_text(messages), response, verbose=False)["input_ids"]
            return array("q", _closed(list(both), self._tail))
        ids = self._lead + self._encode(self._conversation_text(messages, response))
        return array("q", _closed(ids, self._tail))

    def _response_ids(self, messages: Sequence[Message], response: str) -> list[int]:
        prompt, conversation = self.prompt_text(messages), self._conversation_text(messages, response)
        if self._template is not None and not conversation.startswith(prompt):
            raise UserError(self._template.unstable(prompt, conversation))
        head, whole = self._encode(prompt), self._encode(conversation)
        if whole[: len(head)] == head:
            ids = whole[len(head) :]
        else:  # a token spans the border ("\n" + "\n"), but a policy continues from prompt_ids: cut there
            ids = self._encode(conversation[len(prompt) :])
            if self._decode(head + ids) != self._decode(whole):
                fault = f"prompt {prompt[-20:]!r} and reply {response[:20]!r} cannot be tokenized apart"
                raise UserError(f"{self._label}: {fault}; strip the white space where they meet")
        if self._template_closes:
            return ids[: len(ids) - ids[::-1].index(self._close[0])]
        return _closed(ids, self._close)

    def _conversation_text(self, messages: Sequence[Message], response: str) -> str:
        if self._template is not None:
            return self._template.conversation(messages, response)
        return joined(self.prompt_text(messages), response)

    def _encode(self, text: str) -> list[int]:
        return encode(self.tokenizer, text)

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _last(self, own: list[int]) -> list[int]:
        """The tokens that end every conversation, `own` being those that the tokenizer itself puts behind a text."""
        eos = end_token(self.tokenizer)
        if self.choice.end_token:
            if not eos:
                raise UserError(f"reward.end_token=true: the {self._label} has no end token; set it to false or null")
            own = [] if self.choice.form == "pair" else own  # of a pair they stand there already
            return own if own[-1:] == eos else own + eos
        if self.choice.end_token is None and self.choice.form != "pair":
            return [] if self._template_closes else self._close
        return [] if self.choice.form == "pair" else own

    def _closing_token(self) -> list[int]:
        """The first added token behind the reply in a rendered conversation: <|im_end|>, <|eot_id|>, </s>."""
        assert self._template is not None
        behind = self._encode(self._template.behind())
        return [token for token in behind if token in self.tokenizer.added_tokens_decoder][:1]


def _closed(ids: list[int], close: list[int]) -> list[int]:
    """The ids, with the closing tokens behind them unless they are there."""
    return ids if close and ids[-len(close) :] == close else ids + close


def _frozen(messages: Sequence[Message]) -> tuple[tuple[tuple[str, str], ...], ...]:
    """Messages as something that can be looked up."""
    return tuple(tuple(message.items()) for message in messages)  # type: ignore[misc]
