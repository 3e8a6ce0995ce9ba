"""One formatter for every model: messages -> the text and token ids that this tokenizer's model was made for.

Text crosses between models, token ids never do: the policy's reply is decoded, and the reward model's own
ChatFormat renders and encodes it again.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from r2m_cli.data.preferences import Message, write_transcript
from r2m_cli.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE: list[Message] = [{"role": "user", "content": "hello"}]
_PROBE_REPLY = "yes"  # a word that no template has as a word of its own
REMEMBERED = (
    2**14
)  # texts whose ids are kept: rendering and encoding labelled pairs anew at every look costs more than the models


class ChatFormat:
    """How one tokenizer sees conversations: by its chat template, or, if it has none, as plain text.

    Plain text: a lone user message is its content; anything longer is an HH transcript. The reply follows
    after one space (unless white space is there). The tokenizer's own special tokens stand around the whole,
    and EOS closes it.

    Attributes:
        tokenizer: as given.
        name: whose it is ("policy", "reward model"), for messages to the user.
        eos_ids: the tokens that end a reply: EOS, the one that closes the template's assistant turn, and `ends`.
        pad_id: filler that ends no reply (EOS itself only if the tokenizer offers nothing else). It is always
            masked, yet a pool that looks for pad tokens would otherwise lose the closing EOS.

    Raises:
        UserError: the template cannot be rendered, or its prompt is not the start of its conversation.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str = "policy", ends: Iterable[int] = ()) -> None:
        """`ends`: further tokens that end a reply, those at which the model's own generation stops."""
        self.tokenizer = tokenizer
        self.name = name
        self._label = f"{name} tokenizer ({tokenizer.name_or_path or type(tokenizer).__name__})"
        self._options: dict[str, Any] = {}  # what the template gets beside the messages
        self._lead: list[int] = []  # special tokens before the text (template: they stand in the text)
        if tokenizer.chat_template is None:
            self._lead, closing = self._own_specials()
        else:
            self._options = self._stable_options()
            closing = self._closing_token()
        self._template_closes = bool(closing) and tokenizer.chat_template is not None
        self._close = closing or self._eos()
        self.eos_ids: set[int] = {*self._eos(), *self._close[:1], *ends}
        self.pad_id: int = self._choose_pad()
        self._known = lru_cache(REMEMBERED)(self._ids)

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The prompt as text, up to where the reply starts (generation prompt included).

        Raises:
            UserError: the template refuses the messages (a system role, roles out of turn, ...).

        Source: transformers' `apply_chat_template`; HH notation without a template.
        """
        if self.tokenizer.chat_template is not None:
            return self._render(messages, add_generation_prompt=True)
        if len(messages) == 1 and messages[0]["role"] == "user":
            return messages[0]["content"]
        return write_transcript(messages) + "\n\nAssistant:"

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of `prompt_text`, [P]: what the policy continues. Raises, source: as `prompt_text`."""
        return list(self._known("prompt", _frozen(messages), ""))

    def conversation_ids(self, messages: Sequence[Message], response: str) -> list[int]:
        """Token ids of prompt and response with the turn closed, [S]: what a reward model reads.

        With a template this is exactly what the template renders (also a newline behind the closing token, as
        reward models are trained on it); EOS is added only where nothing closes the turn.

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
        """What the public methods give, as compactly as it is kept."""
        messages: list[Any] = [dict(items) for items in frozen]
        if what == "prompt":
            return array("q", self._lead + self._encode(self.prompt_text(messages)))
        if what == "response":
            return array("q", self._response_ids(messages, response))
        ids = self._lead + self._encode(self._conversation_text(messages, response))
        return array("q", ids if self._template_closes else self._closed(ids))

    def _response_ids(self, messages: Sequence[Message], response: str) -> list[int]:
        prompt, conversation = self.prompt_text(messages), self._conversation_text(messages, response)
        if not conversation.startswith(prompt):
            raise UserError(self._unstable(prompt, conversation))
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
        return self._closed(ids)

    def _conversation_text(self, messages: Sequence[Message], response: str) -> str:
        if self.tokenizer.chat_template is not None:
            return self._render([*messages, {"role": "assistant", "content": response}])
        prompt = self.prompt_text(messages)
        joined = not prompt or not response or prompt[-1].isspace() or response[0].isspace()
        return prompt + ("" if joined else " ") + response

    def _render(self, messages: Sequence[Message], **options: Any) -> str:
        try:
            # tokenize=False: in transformers 5 the other way returns a BatchEncoding, not ids
            given = self._options | options
            text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, **given)
        except Exception as error:  # jinja's own errors, and whatever Python the template runs into
            roles = ", ".join(turn["role"] for turn in messages)
            mend = "change the prompts (no system message, roles that alternate) or the model"
            refused = f"the chat template of the {self._label} refuses the roles [{roles}]: {error}"
            raise UserError(f"{refused}; {mend}") from error
        return str(text)

    def _encode(self, text: str) -> list[int]:
        # without special tokens: the template writes its own BOS. verbose: no warning about the length
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _eos(self) -> list[int]:
        eos = self.tokenizer.eos_token_id
        return [] if eos is None else [int(eos)]

    def _closed(self, ids: list[int]) -> list[int]:
        """The ids, with the closing tokens behind them unless they are there."""
        return ids if self._close and ids[-len(self._close) :] == self._close else ids + self._close

    def _own_specials(self) -> tuple[list[int], list[int]]:
        """What the tokenizer itself puts before and after a text: BOS, [CLS] ... [SEP], EOS."""
        bare = self._encode(_PROBE_REPLY)
        full = list(self.tokenizer(_PROBE_REPLY, verbose=False)["input_ids"])
        n = len(bare)
        starts = (i for i in range(len(full)) if full[i : i + n] == bare)
        return next(((full[:i], full[i + n :]) for i in starts), ([], []))

    def _stable_options(self) -> dict[str, Any]:
        """Options under which the probe's prompt is the start of its conversation, best with the reply next.

        Qwen3 and others put "<think></think>" between the two unless `enable_thinking` is false; then the
        empty block is part of the prompt, and the reply just the reply. Other templates ignore the option.
        """
        stable: list[dict[str, Any]] = []
        for options in ({}, {"enable_thinking": False}):
            self._options = options
            prompt, conversation = self.prompt_text(_PROBE), self._conversation_text(_PROBE, _PROBE_REPLY)
            if not conversation.startswith(prompt):
                continue
            if conversation[len(prompt) :].lstrip().startswith(_PROBE_REPLY):
                return options
            stable.append(options)
        if not stable:
            raise UserError(self._unstable(prompt, conversation))
        return stable[0]

    def _unstable(self, prompt: str, conversation: str) -> str:
        at = next((i for i, (a, b) in enumerate(zip(prompt, conversation, strict=False)) if a != b), 0)
        changed = f"{prompt[at : at + 40]!r} became {conversation[at : at + 40]!r}"
        return (
            f"the chat template of the {self._label} changes a prompt once a reply follows: {changed}; give "
            "it a chat_template that keeps the prompt (neither adds nor strips thinking), or another model"
        )

    def _closing_token(self) -> list[int]:
        """The first added token behind the reply in a rendered conversation: <|im_end|>, <|eot_id|>, </s>."""
        text = self._conversation_text(_PROBE, _PROBE_REPLY)
        behind = text[text.rindex(_PROBE_REPLY) + len(_PROBE_REPLY) :] if _PROBE_REPLY in text else ""
        return [token for token in self._encode(behind) if token in self.tokenizer.added_tokens_decoder][:1]

    def _choose_pad(self) -> int:
        added = self.tokenizer.added_tokens_decoder
        specials = {id_: added[id_].content for id_ in sorted(added) if added[id_].special}
        named_pad = [id_ for id_, text in specials.items() if "pad" in text.lower()]
        endoftext = [id_ for id_, text in specials.items() if text == "<|endoftext|>"]
        first = (self.tokenizer.pad_token_id, *named_pad, *endoftext, self.tokenizer.unk_token_id)
        candidates: Iterable[int | None] = (*first, *specials, *self._eos())
        usable = [int(token) for token in candidates if token is not None] or [0]
        return next((token for token in usable if token not in self.eos_ids), usable[0])


def _frozen(messages: Sequence[Message]) -> tuple[tuple[tuple[str, str], ...], ...]:
    """Messages as something that can be looked up."""
    return tuple(tuple(message.items()) for message in messages)  # type: ignore[misc]
