"""A tokenizer's chat template: what it renders, and what a template must do to be of use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from r2m_cli.conversation import Message
from r2m_cli.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE: list[Message] = [{"role": "user", "content": "hello"}]
REPLY = "yes"  # a word that no template has as a word of its own


class ChatTemplate:
    """Messages -> text, by transformers' `apply_chat_template`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, label: str, key: str, writes: bool) -> None:
        """
        Args:
            label: the tokenizer, in messages to the user.
            key: the configuration key that names another template.
            writes: the model writes replies (a policy), and does not only read them.

        Raises:
            UserError: see `ChatFormat`.
        """  # fmt: skip
        self._tokenizer, self._label, self._key = tokenizer, label, key
        self._options: dict[str, Any] = {}  # what the template gets beside the messages
        self._refuse_lossy()
        self._options = self._stable_options()
        if writes:
            self._refuse_missing_cue()

    def prompt(self, messages: Sequence[Message]) -> str:
        """Up to where the reply starts. Raises UserError where the template refuses the messages."""
        return self._render(messages, add_generation_prompt=True)

    def conversation(self, messages: Sequence[Message], reply: str) -> str:
        """Prompt and reply. Raises UserError where the template refuses the messages."""
        return self._render([*messages, {"role": "assistant", "content": reply}])

    def behind(self) -> str:
        """What the template writes behind a reply."""
        text = self.conversation(PROBE, REPLY)
        return text[text.rindex(REPLY) + len(REPLY) :]

    def unstable(self, prompt: str, conversation: str) -> str:
        """The error line for a prompt that is not the start of its conversation."""
        at = next((i for i, (a, b) in enumerate(zip(prompt, conversation, strict=False)) if a != b), 0)
        changed = f"{prompt[at : at + 40]!r} became {conversation[at : at + 40]!r}"
        return (
            f"the chat template of the {self._label} changes a prompt once a reply follows: {changed}; give "
            f"it a chat_template that keeps the prompt (neither adds nor strips thinking; {self._key}), or another model"
        )

    def _render(self, messages: Sequence[Message], **options: Any) -> str:
        try:
            # tokenize=False: in transformers 5 the other way returns a BatchEncoding, not ids
            given = self._options | options
            text = self._tokenizer.apply_chat_template(list(messages), tokenize=False, **given)
        except Exception as error:  # jinja's own errors, and whatever Python the template runs into
            roles = ", ".join(turn["role"] for turn in messages)
            mend = f"change the prompts (no system message, roles that alternate) or the template ({self._key})"
            refused = f"the chat template of the {self._label} refuses the roles [{roles}]: {error}"
            raise UserError(f"{refused}; {mend}") from error
        return str(text)

    def _stable_options(self) -> dict[str, Any]:
        """Options under which the probe's prompt is the start of its conversation, best with the reply next.

        Qwen3 and others put "<think></think>" between the two unless `enable_thinking` is false; then the
        empty block is part of the prompt, and the reply just the reply. Other templates ignore the option.
        """
        stable: list[dict[str, Any]] = []
        for options in ({}, {"enable_thinking": False}):
            self._options = options
            prompt, conversation = self.prompt(PROBE), self.conversation(PROBE, REPLY)
            if not conversation.startswith(prompt):
                continue
            if conversation[len(prompt) :].lstrip().startswith(REPLY):
                return options
            stable.append(options)
        if not stable:
            raise UserError(self.unstable(prompt, conversation))
        return stable[0]

    def _refuse_missing_cue(self) -> None:
        """Raises UserError where the template has no generation prompt, and writes a header that the policy would have to
        write itself. (Templates such as Mistral's need none: the reply stands right behind the prompt.)"""
        prompt, conversation = self.prompt(PROBE), self.conversation(PROBE, REPLY)
        header = conversation[len(prompt) : conversation.rindex(REPLY)]
        if header.strip() and prompt == self._render(PROBE):
            raise UserError(
                f"the chat template of the {self._label} ignores add_generation_prompt: {header!r} stands between a prompt and "
                f"its reply, and the policy would have to write it; {self._key}=FILE names a template that adds it"
            )

    def _refuse_lossy(self) -> None:
        """Raises UserError for a template that is empty, or drops the text of messages."""
        conversation = self.conversation(PROBE, REPLY)
        if not conversation.strip():
            fault = "renders to nothing"
        elif PROBE[0]["content"] not in conversation:
            fault = "drops what the user says"
        elif REPLY not in conversation:
            fault = "drops what the assistant says"
        else:
            return
        raise UserError(f"the chat template of the {self._label} {fault}; correct it, or name another ({self._key})")
