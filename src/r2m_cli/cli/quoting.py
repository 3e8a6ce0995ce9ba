"""Free text on the command line: file names and other words with characters that are special in Hydra's grammar.

The value of a text key is taken literally: `data.path=O'Brien (1).jsonl` names that file. These keep Hydra's meaning: a
value in quotes, `null`, an interpolation `${...}`, the brackets of a list, and, in a sweep, commas between values.
"""

import os
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf, StringNode

from r2m_cli.cli import config_files
from r2m_cli.config.schema import Config, ReportConfig
from r2m_cli.config.values import CHOICES
from r2m_cli.errors import UserError
from r2m_cli.files.jobs import QUOTED

# Keys whose value may be a path: a leading ~ means the home folder.
PATHS = ("data.path", "policy.path", "policy.base", "reward.path", "reward.base", "reward.paths", "policy.template", "reward.template",
         "eval.reward", "eval.against", "engine.hostfile",
         "output", "out", "resume", "run", "runs", "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")  # fmt: skip
# Of those, the paths that a command writes to: there is only one of each per command line.
PLACES = ("output", "out", "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
SWEEPING = re.compile(r"(choice|range|interval|glob|shuffle|sort|tag)\(.*\)")
PLAIN = re.compile(
    r"(?!(?:true|false|nan|inf)$)(?:\.{0,2}/)*[a-z_][\w./-]*", re.ASCII | re.IGNORECASE
)  # Hydra parses it as a string


def check_signs(arguments: Sequence[str]) -> None:
    """Raises UserError for an argument that is not UTF-8, or that contains a control character."""
    for text in arguments:
        if any(unicodedata.category(sign) == "Cs" for sign in text):
            shown = "".join(f"\\x{ord(s) - 0xDC00:02x}" if "\udc80" <= s <= "\udcff" else s for s in text)  # the bytes
            shown = shown.encode("utf-8", "backslashreplace").decode()
            raise UserError(f"{shown}: not UTF-8; rename the file, or type the argument in a UTF-8 terminal")
        if wrong := next((sign for sign in text if unicodedata.category(sign) == "Cc" and sign != "\t"), None):
            shown = text.encode("unicode_escape").decode()
            raise UserError(f"{shown}: contains a control character ({wrong!a}); type the argument without it")


def quoted(override: str, sweeps: bool) -> str:
    """The override with its free text in quotes, for Hydra.

    Args:
        sweeps: whether the command line is a sweep, in which commas separate values.
    """
    name, equals, value = override.partition("=")
    key = name.lstrip("+")
    if not equals:
        return override
    texts, lists = _text_keys()
    if key in lists:
        return f"{name}={_list(key, value)}"
    if key in texts or key in PLACES or (config_files.choices(key) and not value.startswith("[")):
        return f"{name}={_text(key, value, sweeps and key not in PLACES)}"
    return override


@cache
def _text_keys() -> tuple[set[str], set[str]]:
    """(keys of free text, keys of lists of free text) of both schemas."""
    texts: set[str] = set()
    lists: set[str] = set()

    def walk(node: DictConfig, prefix: str) -> None:
        for name in node:
            value, key = node._get_node(name), f"{prefix}{name!s}"
            if isinstance(value, DictConfig):
                walk(value, f"{key}.")
            elif isinstance(value, StringNode) and key not in CHOICES:
                texts.add(key)
            elif isinstance(value, ListConfig):
                lists.add(key)

    for schema in (Config, ReportConfig):
        walk(OmegaConf.structured(schema), "")
    return texts, lists


def _text(key: str, value: str, sweeps: bool) -> str:
    if _exists(value):
        return _element(key, value)
    if sweeps and SWEEPING.fullmatch(value):
        return value
    parts = _split(value)
    # Without -m, commas separate values only if every part exists: Hydra then reports that it needs -m.
    if len(parts) > 1 and (sweeps or all(_exists(part.strip()) for part in parts)):
        return ",".join(_element(key, part) for part in _joined(parts))
    return _element(key, value)


def _list(key: str, value: str) -> str:
    if value.startswith("[") and value.endswith("]") and not _exists(value):
        inner = value[1:-1].strip()
        return f"[{','.join(_element(key, part) for part in _joined(_split(inner)))}]" if inner else value
    return value if value == "null" or "${" in value else _element(key, value)


def _element(key: str, value: str) -> str:
    """One string in the form that Hydra parses as one."""
    from hydra.core.override_parser.types import Quote, QuotedString

    here = _exists(value)
    if not here and (value in ("", "???") or value.lower() == "null" or QUOTED.fullmatch(value)):
        return value
    if here and "${" in value:
        raise UserError(f"{key}={value}: ${{ in a name is taken for a reference to another key; rename the file")
    if key in PATHS:
        value = _at_home(value)
    return value if PLAIN.fullmatch(value) else QuotedString(value, Quote.single).with_quotes()


def _at_home(value: str) -> str:
    """The value with a leading ~ expanded; an existing name that begins with ~ gets ./ so that no reader expands it."""
    if not value.startswith("~"):
        return value
    full = value if os.path.lexists(value) else os.path.expanduser(value)
    return f"./{full}" if full.startswith("~") else full


def _exists(value: str) -> bool:
    try:
        return bool(value) and (os.path.lexists(value) or Path(os.path.expanduser(value)).exists())
    except (OSError, ValueError):  # too long for a name
        return False


def _split(value: str) -> list[str]:
    """The parts between unquoted commas. A quote counts only at the beginning of a part: the one in O'Brien does not."""
    parts, begin = [], 0
    while True:
        closed = QUOTED.match(value, begin + len(value[begin:]) - len(value[begin:].lstrip()))
        comma = value.find(",", closed.end() if closed else begin)
        parts.append(value[begin : comma if comma >= 0 else None])
        if comma < 0:
            return parts
        begin = comma + 1


def _joined(parts: list[str]) -> list[str]:
    """The parts, with those rejoined that together are an existing name: `run/method=rloo,ppo.beta=0.1`."""
    result: list[str] = []
    place = 0
    while place < len(parts):
        ends = range(len(parts), place + 1, -1)
        end = next((end for end in ends if _exists(",".join(parts[place:end]).strip())), place + 1)
        result.append(",".join(parts[place:end]).strip())
        place = end
    return result
