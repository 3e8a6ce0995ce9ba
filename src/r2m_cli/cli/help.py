"""`r2m WORD --help`: the groups and keys that a word reads, each with its meaning and current value. `r2m help NAME`: one of them."""

import difflib
import shutil
import textwrap
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from r2m_cli.cli.config_files import PLUGINS
from r2m_cli.cli.config_files import choices as choices_of
from r2m_cli.config.keys import ADDED, Key, choices, keys_of, keys_read_by, parts, shown, words_of
from r2m_cli.config.old_keys import what_became_of
from r2m_cli.config.schema import ReportConfig
from r2m_cli.errors import UserError

HELP = ("--help", "-h")
ASIDE = 34  # width of the `key=value` column, before the meaning


def page(word: str, what: str, composed: DictConfig, folder: str | None = None) -> str:
    """The help of a word: its groups, and its keys with the values of this command line.

    Args:
        what: what the word does.
        composed: the configuration composed from the overrides.
        folder: --config-dir.
    """
    found = keys_read_by(word)
    usage = "RUN [RUN...] [out=FILE]" if word == "report" else "[group=choice] [key=value ...]"
    lines = [f"r2m {word}: {what}", "", f"Usage: r2m {word} {usage}", ""]
    if word != "report":
        sections = {key.name.split(".")[0] for key in found}
        named = dict.fromkeys(group for group, _, _ in _choices() if group.startswith("+") or group in sections)
        lines += ["Groups (group=choice; r2m help GROUP explains each choice)"]
        lines += [_wrapped(f"{group}: {', '.join(choices_of(group.lstrip('+'), word, folder))}") for group in named]
        lines += [""]
    lines += ["Keys (key=value with the values of this command line; r2m help KEY explains one)"]
    section = ""
    for key in found:
        if (begins := key.name.partition(".")[0] if "." in key.name else "") != section:
            lines.append("")
            section = begins
        lines.append(_row(key.name, OmegaConf.select(composed, key.name), key.meaning))
    lines += ["", "--cfg job prints the configuration, -m sweeps over comma-separated values, --config-dir DIR adds files of your own,",
              "--hydra-help lists the other options."]  # fmt: skip
    return "\n".join(lines) + "\n"


def explained(name: str) -> str:
    """The explanation of a key, a section of keys, or a group.

    Raises:
        UserError: nothing has this name; the message names the nearest keys and groups.
    """
    name = name.lstrip("+").split("=")[0]
    texts = [_key(key, schema is ReportConfig) for schema, key in _all() if key.name == name]
    rows = [(choice, said) for group, choice, said in _choices() if group.lstrip("+") == name]
    if not rows and name in PLUGINS:
        rows = [(choice, "") for choice in choices_of(name)]
    if rows:
        plus = "+" if name in ADDED else ""
        width = max(len(choice) for choice, _ in rows) + 2
        listed = [f"  {plus}{name}={choice:{width}}{said}".rstrip() for choice, said in rows]
        texts.append("\n".join([f"{plus}{name}=CHOICE is a group of values:", *listed]))
    if section := [key for _, key in _all() if key.name.startswith(f"{name}.")]:
        listed = [_row(key.name, key.default, key.meaning, typed=True) for key in section]
        texts.append("\n".join([f"Keys of {name} (with their defaults):", *listed]))
    if not texts and (became := what_became_of(name)):
        raise UserError(became)
    if not texts:
        known = dict.fromkeys(
            [*(key.name for _, key in _all()), *(group.lstrip("+") for group, _, _ in _choices()), *PLUGINS]
        )
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
        near += [key for key in known if key.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1] and key not in near]
        hint = f"did you mean {', '.join(near[:5])}?" if near else "r2m train --help lists them"
        if name.split(".")[0] == "hydra":
            hint = "it is a key of Hydra; r2m train --cfg hydra prints those keys, hydra.cc/docs explains them"
        raise UserError(f"{name}: no key or group has this name; {hint}")
    return "\n\n".join(texts) + "\n"


def names() -> list[str]:
    """The names that `r2m help` can explain, for shell completion."""
    found = [key.name for _, key in _all()] + [group.lstrip("+") for group, _, _ in _choices()]
    return sorted({*found, *(name.rsplit(".", 1)[0] for name in found), *PLUGINS})


@cache
def _choices() -> list[tuple[str, str, str]]:
    return list(choices())


@cache
def _all() -> list[tuple[type, Key]]:
    return [(schema, key) for prefix, _, schema in parts() for key in keys_of(schema, prefix)]


def _key(key: Key, of_report: bool) -> str:
    lines = [key.name, *textwrap.wrap(key.meaning, _columns() - 2, initial_indent="  ", subsequent_indent="  ")]
    lines += [f"  type: {key.type}", f"  default: {key.default}"]
    if key.allowed:
        lines.append(f"  values: {', '.join(key.allowed)}")
    words = ("report",) if of_report else words_of(key.name)
    lines.append(f"  read by: {', '.join(f'r2m {word}' for word in words)}")
    return "\n".join(lines)


def _row(name: str, value: Any, meaning: str, typed: bool = False) -> str:
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    said = value if typed else shown(plain)
    begin = f"  {name}={textwrap.shorten(said, 40, placeholder='...')}"
    room = max(_columns() - max(len(begin) + 2, ASIDE), 20)
    return f"{begin:{ASIDE - 2}}  {textwrap.shorten(meaning, room, placeholder=' ...')}"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _columns(), initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)


def _columns() -> int:
    return shutil.get_terminal_size((120, 24)).columns
