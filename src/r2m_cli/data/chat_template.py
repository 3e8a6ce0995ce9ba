"""A tokenizer's chat template: rendering, and checks that the template is usable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from r2m_cli.conversation import Message
from r2m_cli.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE: list[Message] = [{"role": "user", "content": "hello"}]
REPLY = "yes"  # a word that no template contains


class ChatTemplate:
    """Messages -> text, by transformers' `apply_chat_template`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, label: str, key: str, writes: bool) -> None:
        """
        Args:
            label: the tokenizer, in messages to the user.
            key: the configuration key that selects another template.
            writes: the model writes replies (a policy) rather than only reading them.

        Raises:
            UserError: see `ChatFormat`.
        """  # fmt: skip
        self._tokenizer, self._label, self._key = tokenizer, label, key
        self._options: dict[str, Any] = {}  # arguments of the template in addition to the messages
        self._refuse_lossy()
        self._options = self._stable_options()
        if writes:
            self._refuse_missing_cue()

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text up to where the reply starts. Raises UserError if the template refuses the messages."""
        return self._render(messages, add_generation_prompt=True)

    def conversation(self, messages: Sequence[Message], reply: str) -> str:
        """Prompt and reply as text. Raises UserError if the template refuses the messages."""
        return self._render([*messages, {"role": "assistant", "content": reply}])

    def behind(self) -> str:
        """The text that the template writes after a reply."""
        text = self.conversation(PROBE, REPLY)
        return text[text.rindex(REPLY) + len(REPLY) :]

    def unstable(self, prompt: str, conversation: str) -> str:
        """The error line for a prompt that is not the start of its conversation."""
        at = next((i for i, (a, b) in enumerate(zip(prompt, conversation, strict=False)) if a != b), 0)
        changed = f"{prompt[at : at + 40]!r} became {conversation[at : at + 40]!r}"
        return (
            f"the chat template of the {self._label} changes a prompt when a reply follows: {changed}; use a "
            f"chat_template that keeps the prompt (neither adds nor strips thinking; {self._key}), or another model"
        )

    def _render(self, messages: Sequence[Message], **options: Any) -> str:
        try:
            # tokenize=False: with True, transformers 5 returns a BatchEncoding, not ids
            given = self._options | options
            text = self._tokenizer.apply_chat_template(list(messages), tokenize=False, **given)
        except Exception as error:  # jinja's own errors, and any Python error inside the template
            roles = ", ".join(turn["role"] for turn in messages)
            fix = f"change the prompts (no system message, roles that alternate) or the template ({self._key})"
            refused = f"the chat template of the {self._label} refuses the roles [{roles}]: {error}"
            raise UserError(f"{refused}; {fix}") from error
        return str(text)

    def _stable_options(self) -> dict[str, Any]:
        """Options under which the probe's prompt is the start of its conversation, preferably with the reply right after it.

        Qwen3 and others put "<think></think>" between the two unless `enable_thinking` is false. With false, the empty
        block is part of the prompt. Other templates ignore the option.
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
        """Raises UserError if the template has no generation prompt but puts a header before the reply, which the policy would
        have to write itself. (Templates such as Mistral's need none: the reply comes right after the prompt.)"""
        prompt, conversation = self.prompt(PROBE), self.conversation(PROBE, REPLY)
        header = conversation[len(prompt) : conversation.rindex(REPLY)]
        if header.strip() and prompt == self._render(PROBE):
            raise UserError(
                f"the chat template of the {self._label} ignores add_generation_prompt: {header!r} comes between a prompt and "
                f"its reply, and the policy would have to write it; set {self._key}=FILE to a template that adds it"
            )

    def _refuse_lossy(self) -> None:
        """Raises UserError for a template that is empty, or that drops the text of messages."""
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
