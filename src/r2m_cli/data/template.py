"""One formatter for every model: messages -> the text and token ids that this tokenizer's model was trained on.

Models exchange text, not token ids: the policy's reply is decoded, and the reward model's own ChatFormat renders and
encodes it again.
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
)  # texts whose ids are cached: rendering and encoding labelled pairs each time would cost more than the models


class ChatFormat:
    """How one model reads conversations: with its tokenizer's chat template, or in a form of `forms.py`.

    In a form, the reply follows the prompt after one space (unless there is white space), the tokenizer's own special tokens
    surround the text, and EOS closes it. The form `pair` passes prompt and reply to the tokenizer as two texts and adds nothing.

    Attributes:
        tokenizer: as passed.
        name: the model that it belongs to ("policy", "reward model"), for messages to the user.
        choice: as passed; by default the tokenizer decides.
        eos_ids: the tokens that end a reply: EOS, the token that closes the template's assistant turn, and `ends`.
        pad_id: a padding token that does not end a reply (EOS only if the tokenizer has no other). It is always masked,
            but a model that pools by pad token would otherwise miss the closing EOS.
        boundary: with `pair`, the token that separates the two texts if the tokenizer numbers them (token_type_ids).

    Args:
        vocabulary: number of rows of the model's input embeddings, if known: a padding token without a row is never used,
            and any other token without a row is an error.
        ends: further tokens that end a reply: those at which the model's own generation stops.

    Raises:
        UserError: the template cannot be rendered, drops its input, or changes a prompt when a reply follows; a policy's
            template has no generation prompt; or an end token is requested and there is none.
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
        self._lead: list[int] = []  # special tokens before the text (a template writes them into the text)
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
        self.conversation_ids(PROBE, REPLY)  # so a template's tokens without an embedding are refused at once

    @property
    def key(self) -> str:
        """The setting that changes the form, for messages to the user."""
        keys = {"policy": "policy.template", "reward model": "reward.template"}
        return keys.get(self.name, f"a file {RECORD} in its folder")

    def note(self) -> str | None:
        """A note for the user on how conversations are written, if not with the tokenizer's own template."""
        if self._template is not None:
            return None
        shown = self._decode(self.conversation_ids(PROBE, REPLY))
        why = "its tokenizer has no chat template" if self.choice.form is None else f"form {self.choice.form}"
        asked = PROBE[0]["content"]
        return f"the {self.name} reads {asked!r} answered with {REPLY!r} as {shown!r} ({why}; {self.key} changes it)"

    def save(self, folder: Path) -> None:
        """Write the tokenizer, and the record of the form if needed, into a model's folder."""
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
        """Token ids of `prompt_text`, [P], which the policy continues. Raises, source: as `prompt_text`."""
        return list(self._known("prompt", _frozen(messages), ""))

    def conversation_ids(self, messages: Sequence[Message], response: str) -> list[int]:
        """Token ids of prompt and response with the turn closed, [S]: the reward model's input.

        With a template, this is exactly the rendered text (including a newline after the closing token, since reward models
        are trained on it). EOS is added only if nothing closes the turn, or as set by reward.end_token.

        Raises:
            UserError: the template refuses the messages.

        Fitting and scoring use this one formatter: a model fitted with an end token must not be scored without it.
        """
        return list(self._known("conversation", _frozen(messages), response))

    def cut(self, ids: list[int], limit: int) -> list[int]:
        """At most `limit` of a conversation's ids: the oldest are dropped, but the token that opens every text ([CLS], BOS) is kept."""
        if len(ids) <= limit:
            return ids
        opens = ids[:1] if ids[0] in (self.tokenizer.cls_token_id, self.tokenizer.bos_token_id) else []
        return opens + ids[len(ids) - limit + len(opens) :]

    def response_ids(self, messages: Sequence[Message], response: str) -> list[int]:
        """Token ids to append to `prompt_ids`, [R], up to the token that ends the turn, as a policy samples.

        `prompt_ids + response_ids` decodes to the conversation, without a template's newline after the turn.

        Raises:
            UserError: the template refuses the messages, or changes the prompt when a reply follows.

        The hidden states are those of prompt and response in one sequence (arXiv 2601.22664, step 1).
        """
        return list(self._known("response", _frozen(messages), response))

    def _ids(self, what: str, frozen: tuple[tuple[tuple[str, str], ...], ...], response: str) -> array[int]:
        """The ids of the public methods, in a compact form for the cache. Raises UserError for a token without an embedding."""
        ids = self._made(what, frozen, response)
        highest = max(ids, default=0)
        if self.vocabulary is not None and highest >= self.vocabulary:
            token = self.tokenizer.convert_ids_to_tokens(int(highest))
            raise UserError(
                f"{self._label}: its token {token!r} has the id {highest}, but the model's embeddings have "
                f"{self.vocabulary} rows; add rows with model.resize_token_embeddings(len(tokenizer)) and train them"
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
        else:  # a token spans the border ("\n" + "\n"), but a policy continues from prompt_ids: split there
            ids = self._encode(conversation[len(prompt) :])
            if self._decode(head + ids) != self._decode(whole):
                fault = f"prompt {prompt[-20:]!r} and reply {response[:20]!r} cannot be tokenized separately"
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
        """The tokens that end every conversation; `own` are those that the tokenizer itself appends to a text."""
        eos = end_token(self.tokenizer)
        if self.choice.end_token:
            if not eos:
                raise UserError(f"reward.end_token=true: the {self._label} has no end token; set it to false or null")
            own = [] if self.choice.form == "pair" else own  # in a pair they are already there
            return own if own[-1:] == eos else own + eos
        if self.choice.end_token is None and self.choice.form != "pair":
            return [] if self._template_closes else self._close
        return [] if self.choice.form == "pair" else own

    def _closing_token(self) -> list[int]:
        """The first added token after the reply in a rendered conversation: <|im_end|>, <|eot_id|>, </s>."""
        assert self._template is not None
        behind = self._encode(self._template.behind())
        return [token for token in behind if token in self.tokenizer.added_tokens_decoder][:1]


def _closed(ids: list[int], close: list[int]) -> list[int]:
    """The ids, with the closing tokens appended unless they are already there."""
    return ids if close and ids[-len(close) :] == close else ids + close


def _frozen(messages: Sequence[Message]) -> tuple[tuple[tuple[str, str], ...], ...]:
    """Messages in a hashable form."""
    return tuple(tuple(message.items()) for message in messages)  # type: ignore[misc]
