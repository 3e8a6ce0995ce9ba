"""Turns an error into one line that names what the user typed, and an exit code."""

import errno
import re
import sys
import traceback
from collections.abc import Sequence

from r2m_cli.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LONGEST = 500  # characters shown of another library's error


def explain(error: Exception, word: str) -> int:
    """Print an error in its readable form and return the exit code."""
    said = one_line(error, word)
    if said is not None:
        print(f"r2m: error: {said}", file=sys.stderr)
        return 2
    from r2m_cli.launch.ranks import RankFailed

    if isinstance(error, RankFailed):
        print(f"r2m: {word} failed: {error}", file=sys.stderr)
    else:
        traceback.print_exception(error)
    return 1


def one_line(error: Exception, word: str, typed: Sequence[str] = (), composing: bool = False) -> str | None:
    """The error in one line; None for a bug in the program.

    Args:
        typed: the overrides.
        composing: whether the error came from Hydra, OmegaConf or one of their plugins, before the job began or between two
            jobs: then the input is to blame, whatever the type of the error.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, HydraException | OmegaConfBaseException):
        said = " ".join(explain_composition(error, typed, word).splitlines())
        plugin = re.search(r"'hydra/(?:sweeper|launcher)/(optuna|joblib|submitit)", said)
        return said + (f" Install the plugin: pip install 'r2m[{plugin[1]}]'" if plugin else "")
    if type(error).__module__.startswith("yaml."):
        return f"a configuration file is not valid YAML: {' '.join(str(error).split())}"
    if type(error).__module__.startswith("sqlalchemy."):
        return f"hydra.sweeper.storage: {_first_line(error)}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; choose another place (hydra.run.dir, out, output, R2M_CACHE)"
    if isinstance(error, OSError) and error.errno in FULL:
        return f"{error.strerror}; free some space, or choose another place (hydra.run.dir, out, output, R2M_CACHE)"
    if composing:
        if refused := _refused(typed):
            return refused
        culprit = next((text for text in typed if text.lstrip("+~").startswith("hydra")), None)
        return (
            f"{culprit}: {_first_line(error)}"
            if culprit
            else f"{_first_line(error)}; r2m {word} --info shows what was composed"
        )
    return None


def _first_line(error: BaseException) -> str:
    said = " ".join(next(iter(str(error).splitlines()), "").split())
    said = said if len(said) <= LONGEST else f"{said[:LONGEST]}..."
    return said if said and not isinstance(error, KeyError) else f"{type(error).__name__} {said}".strip()


def _refused(overrides: Sequence[str]) -> str | None:
    """The line for the first override that Hydra's grammar refuses."""
    for override in overrides:
        if (reason := _unreadable(override)) is not None:
            shown = override if len(override) <= LONGEST else f"{override[:LONGEST]}..."
            return f"{shown}: no value ({reason}); close its brackets, or put it into quotes if they are part of a text"
    return None


def _unreadable(override: str) -> str | None:
    """Why Hydra's grammar refuses an override; None if it accepts it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    try:
        OverridesParser.create().parse_override(override)
    except Exception as error:  # Hydra's error, or Python's for a number with thousands of digits
        while error.__cause__ is not None and str(error.__cause__) not in ("", "None"):
            error = error.__cause__  # type: ignore[assignment]
        return _first_line(error)
    return None


def explain_composition(error: Exception, overrides: Sequence[str] = (), word: str = "train") -> str:
    """One line for an error of Hydra or OmegaConf about an override: a typo in a key, a group or a value.

    Args:
        overrides: what was typed, without options.
        word: `r2m word`.
    """
    from r2m_cli.config.check import APPENDED, unknown_key
    from r2m_cli.config.old_keys import what_became_of
    from r2m_cli.config.schema import Config, ReportConfig

    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = str(error) + "\n" + str(cause)
    key = re.search(r"[Kk]ey '([^']+)' (?:is )?not in", text)
    override = re.search(r"Could not override '([^']+)'", text)
    named = (override or key).group(1) if override or key else None  # type: ignore[union-attr]
    if named in APPENDED:
        if added := [text for text in overrides if text.startswith(f"+{named}=")]:
            return f"{added[0]}: the first line of its file must be `# @package _global_`"
        typed = next((text for text in overrides if text.startswith(f"{named}=")), f"{named}=...")
        return f"{typed}: write +{typed}, with a plus: it is added to the configuration"
    if named is not None:
        full = re.search(r"full_key: (\S+)", text)
        file = re.search(r"In '([^']+)': ConfigKeyError", text)
        old = override is not None and what_became_of(override[1])
        unknown = old or unknown_key(full[1] if full else named, ReportConfig if word == "report" else Config)
        return f"{unknown} (in {file[1]}.yaml)" if file and "/" in file[1] else unknown
    if twice := re.search(r"Multiple values for (\w+)\.", text):
        typed = next((text for text in overrides if text.startswith(f"+{twice[1]}=")), f"+{twice[1]}=...")
        return f"{typed}: write {typed[1:]}, without a plus: the group has a choice already"
    if wrong := re.search(
        r"merging override ([^=\s]+)=[\s\S]*(Value '.*' of type '\w+' could not be converted to \w+)", text
    ):
        return f"{wrong[1]}: {wrong[2]}"
    if mine := re.search(
        r"In '([^']+)': \w+ raised while composing config:\s*(.*)[\s\S]*?full_key: *(\S*)", str(error)
    ):
        no_value = "Incompatible value 'None'" in mine[2] or "is not Optional" in mine[2]
        reason = "it cannot be null" if no_value else mine[2].rstrip(".")
        return f"{mine[3]}: {reason} (in {mine[1]}.yaml)" if mine[3] else f"{mine[1]}.yaml: {reason}"
    if null := re.search(r"merging override (\S+)=\S*\s*field '[^']*' is not Optional", text):
        return f"{null[1]}: it cannot be null"
    if bare_list := re.search(
        r"merging override ([^=\s]+)=(.*)\s*Invalid value assigned: \w+ is not a ListConfig", text
    ):
        return f"{bare_list[1]}: it is a list, write {bare_list[1]}=[{bare_list[2].strip()}]"
    if several := re.search(r"Ambiguous value for argument '([^']*)'", text):
        return f"{several[1]}: several values make a sweep, which needs -m"
    if bare := re.search(r"parsing override '(.*)'\s*missing EQUAL", text):
        hint = {
            "evaluate": f"; to name a run, write run={bare[1]}",
            "analyze": "; to name runs, write run=RUN or runs=[A,B]",
        }
        return f"{bare[1]}: an override is key=value{hint.get(word, '')}"
    if group := re.search(
        r"Could not find '([^']+)/([^']+)'\s*Available options in '[^']+':\n((?:\t.*\n)+)", str(error)
    ):
        return f"{group[1]}={group[2]}: the choices are {', '.join(group[3].split())}"
    for typed_ in overrides:
        if (reason := _unreadable(typed_)) is not None:
            return (
                f"{typed_}: no value ({reason}); close its brackets, or put it into quotes if they are part of a text"
            )
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    if cause is not error:
        said += [line.strip() for line in str(cause).splitlines()[:1] if line.strip() not in said]
    said = [line for line in said if not line.startswith(("See https", "Config search path", "provider="))]
    return " ".join(said) if said else type(error).__name__
