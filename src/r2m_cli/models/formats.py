"""The formatter of every model that the configuration names: its tokenizer and its template."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from r2m_cli.config.schema import PolicyConfig, RewardConfig
from r2m_cli.data.forms import chosen
from r2m_cli.data.template import ChatFormat
from r2m_cli.models.loading import load_tokenizer, resolve, vocabulary


def policy_format(c: PolicyConfig, name: str, key: str, ends: Iterable[int] = ()) -> ChatFormat:
    """The conversation format of the policy `name`; `key` is the configuration key that gave it, `ends` as in `ChatFormat`. Raises UserError, also from `ChatFormat`."""
    who = "policy" if key.startswith("policy.") else f"policy of {key}"
    return format_of(load_tokenizer(name, key), who, c.template, None, _folder(name, key), vocabulary(name, key), ends)


def reward_format(c: RewardConfig, name: str, key: str) -> ChatFormat:
    """The conversation format of the reward model `name`; `key` is the configuration key that gave it. Raises UserError, also from `ChatFormat`."""
    who = "reward model" if key.startswith("reward.") else f"reward model of {key}"
    rows = vocabulary(name, key)
    return format_of(load_tokenizer(name, key), who, c.template, c.end_token, _folder(name, key), rows)


def format_of(
    tokenizer: Any,
    who: str,
    template: str | None = None,
    end_token: bool | None = None,
    folder: Path | None = None,
    rows: int | None = None,
    ends: Iterable[int] = (),
) -> ChatFormat:
    """A tokenizer's formatter.

    Args:
        who: as `ChatFormat.name`.
        template, end_token: policy.template, or reward.template and reward.end_token.
        folder: of the model; its record is used if template and end_token are None.
        rows: number of rows of the model's input embeddings, if known.
        ends: as in `ChatFormat`.
    """  # fmt: skip
    key = "policy.template" if who.startswith("policy") else "reward.template"
    choice, jinja = chosen(template, end_token, folder, key)
    if jinja is not None:
        tokenizer.chat_template = jinja
    return ChatFormat(tokenizer, who, choice, rows, ends)


def _folder(name: str, key: str) -> Path | None:
    path = Path(resolve(name, key))
    return path if path.is_dir() else None
