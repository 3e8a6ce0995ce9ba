"""How conversations are written without a chat template, and the file in a model's folder that records it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from r2m_cli.conversation import Message
from r2m_cli.data.messages import write_transcript
from r2m_cli.errors import UserError
from r2m_cli.text import from_home

# Built-in Jinja chat templates, for forms that need special tokens inside the text.
TEMPLATES = {
    # PKU-Alignment's safe-rlhf (constants.py, format_prompt): no space before a reply, EOS after each one but the last.
    "beaver": (
        "{% if messages[0].role == 'system' %}{{ raise_exception('the form beaver has no system message') }}{% endif %}"
        "{{ bos_token }}BEGINNING OF CONVERSATION: {% for m in messages %}"
        "{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ASSISTANT:' }}"
        "{% else %}{{ m.content }}{% if not loop.last %}{{ eos_token }}{% endif %}{% endif %}{% endfor %}"
    )
}
BUILT_IN = ("hh", "plain", "pair", *TEMPLATES)
RECORD = "r2m_template.json"  # stored with a model: settings that transformers has no place for


class Choice(NamedTuple):
    """How one model's conversations are written; None: its tokenizer decides."""

    form: str | None = None  # hh, plain, pair
    end_token: bool | None = None  # reward.end_token


def prompt_in(form: str | None, messages: Sequence[Message]) -> str:
    """A prompt as text, up to where the reply starts.

    Args:
        form: hh: "\\n\\nHuman: ... \\n\\nAssistant:" (github anthropics/hh-rlhf); plain and pair: the texts, a newline between
            two of them; None: the text of a lone user message, hh for anything longer.
    """
    if form in ("plain", "pair"):
        return "\n".join(message["content"] for message in messages)
    if form is None and len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    return write_transcript(messages) + "\n\nAssistant:"


def joined(prompt: str, reply: str) -> str:
    """Prompt and reply with a space between them, unless there is already white space."""
    together = not prompt or not reply or prompt[-1].isspace() or reply[0].isspace()
    return prompt + ("" if together else " ") + reply


def chosen(template: str | None, end_token: bool | None, folder: Path | None, key: str) -> tuple[Choice, str | None]:
    """How a model's conversations are written, from the configuration or else the record in its folder; and a Jinja template
    that replaces the tokenizer's.

    Args:
        template: a file, one of BUILT_IN, or None.
        folder: the model's; None for a hub name.
        key: the configuration key of `template`.

    Raises:
        UserError: the file does not exist or is not text; or the record cannot be read.
    """
    recorded = Choice() if folder is None else read_record(folder)
    end_token = recorded.end_token if end_token is None else end_token
    named = recorded.form if template is None else template
    if named in TEMPLATES:
        return Choice(None, end_token), TEMPLATES[named]
    if named is None or named in BUILT_IN:
        return Choice(named, end_token), None
    return Choice(None, end_token), read_template(named, key)


def read_template(template: str, key: str) -> str:
    """The text of a Jinja file. Raises UserError if there is none."""
    path = from_home(template)
    if not path.is_file():
        raise UserError(f"{key}={template}: neither a file nor one of {', '.join(BUILT_IN)}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key}={template}: cannot be read as UTF-8 text ({error})") from error
    if not text.strip():
        raise UserError(f"{key}={template}: the file is empty; it must hold a chat template in Jinja")
    return text


def read_record(folder: Path) -> Choice:
    """The record in a model's folder, or an empty one if there is none. Raises UserError if it cannot be read."""
    file = folder / RECORD
    if not file.is_file():
        return Choice()
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        choice = Choice(found.get("template"), found.get("end_token"))
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({error}); correct or remove it") from error
    if choice.form not in (None, *BUILT_IN) or not isinstance(choice.end_token, bool | None):
        raise UserError(
            f'{file}: "template" must be one of {", ".join(BUILT_IN)} or null, and "end_token" true, false or null'
        )
    return choice


def write_record(folder: Path, choice: Choice) -> None:
    """Write the record into a model's folder, unless the tokenizer alone is enough."""
    if choice != Choice():
        (folder / RECORD).write_text(json.dumps({"template": choice.form, "end_token": choice.end_token}))
