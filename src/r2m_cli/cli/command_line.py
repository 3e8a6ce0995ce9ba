"""Prepares the arguments for Hydra: options first, groups in order, free text in quotes; each mistake gets one line."""

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from hydra.errors import HydraException
from omegaconf import DictConfig

from r2m_cli.cli import config_files, sweep
from r2m_cli.cli.quoting import check_signs, quoted
from r2m_cli.errors import UserError

CONFIG_DIR = ("--config-dir", "-cd")
# Hydra's options whose value is the next word.
VALUED = (
    "--cfg",
    "-c",
    "--package",
    "-p",
    "--config-path",
    "-cp",
    "--config-name",
    "-cn",
    *CONFIG_DIR,
    "--experimental-rerun",
)
INFO = ("--info", "-i")  # its value may be left out
SHOWING = ("--cfg", "-c", *INFO)
INFOS = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


def prepared(arguments: Sequence[str], word: str) -> list[str]:
    """The arguments after `r2m word`, in the form that Hydra accepts.

    Raises:
        UserError: an option that does not exist, a malformed override, an empty choice, or a file of --config-dir that
            cannot be read.
    """
    check_signs(arguments)
    options, overrides = parted(arguments)
    _check_options([*options, *overrides], word)
    folder = _config_dir(options)
    for override in overrides:
        _check(override, word)
    config_files.check(folder, overrides)
    # +sweep=NAME starts a sweep even without -m.
    sweeps = any(text in ("-m", "--multirun") for text in options) or any(
        text.startswith("+sweep=") or text == "hydra.mode=MULTIRUN" for text in overrides
    )
    ready = [_free(quoted(override, sweeps)) for override in sweep.in_order(overrides)]
    if shows := [text.split("=")[0] for text in options if text.split("=")[0] in SHOWING]:
        _refuse_several(ready, shows[0])
    return [*options, *ready]


def _refuse_several(overrides: Sequence[str], option: str) -> None:
    """Raises UserError for an override with several values, because `option` shows one configuration."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    for text in overrides:
        with suppress(HydraException):  # an override that cannot be parsed is reported when Hydra composes
            if parser.parse_override(text).is_sweep_override():
                raise UserError(f"{text}: {option} shows the configuration of one run; give every key one value")


def _free(override: str) -> str:
    """An override below engine.deepspeed, whose keys are not r2m's, with the plus signs that let Hydra add new keys."""
    name, _, value = override.partition("=")
    if name.lstrip("+") == "engine.deepspeed" and not value.startswith("{"):
        raise UserError(f"{override}: takes keys of DeepSpeed's JSON, engine.deepspeed.KEY=VALUE")
    return f"++{override}" if name.startswith("engine.deepspeed") else override


def parted(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(options, overrides). Users may put options anywhere; Hydra's parser accepts none between two overrides.

    Raises:
        UserError: an option without its value.
    """
    options, overrides, rest = [], [], list(arguments)
    while rest:
        text = rest.pop(0)
        if text in INFO:  # value in the same argument: otherwise Hydra takes the first override for it
            options.append(f"--info={rest.pop(0) if rest and rest[0] in INFOS else 'all'}")
        elif not text.startswith("-"):
            overrides.append(text)
        else:
            options.append(text)
            if text in VALUED:
                if not rest or rest[0].startswith("-"):
                    raise UserError(f"{text}: needs a value after it")
                options.append(rest.pop(0))
    return options, overrides


def _config_dir(options: list[str]) -> str | None:
    """The folder of --config-dir, with a leading ~ replaced by the home folder."""
    folder = None
    for place, text in enumerate(options):
        name, equals, value = text.partition("=")
        if name not in CONFIG_DIR:
            continue
        folder = os.path.expanduser(value if equals else options[place + 1])
        if equals:
            options[place] = f"{name}={folder}"
        else:
            options[place + 1] = folder
        if not os.path.isdir(folder):
            raise UserError(f"--config-dir {folder}: no such folder")
    return folder


def _check(override: str, word: str) -> None:
    """Raises UserError for an override whose key or choice is empty."""
    key, equals, value = override.partition("=")
    if equals and not key.strip("+~ "):
        raise UserError(f"{override}: an override is key=value, and this one has no key")
    if key.startswith("~") and not key.startswith("~hydra"):
        raise UserError(f"{override}: a key cannot be removed, its default would come back; set it instead, key=value")
    group = key.lstrip("+")
    if equals and value.lower() in ("", "null", "[]", "{}") and (known := config_files.choices(group, word)):
        raise UserError(f"{override}: names no choice; leave it out, or choose one of {', '.join(known)}")


def _check_options(arguments: list[str], word: str) -> None:
    """Raises UserError for unknown options and bad combinations. Hydra's parser alone would print a page of usage."""
    from hydra._internal.utils import get_args_parser

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; keys are set without dashes (seed=1); r2m {word} --hydra-help lists the options")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    known = parser.parse_args(arguments)
    modes = {
        "--cfg": known.cfg,
        "--info": known.info,
        "-m": known.multirun,
        "--run": known.run,
        "-sc": known.shell_completion,
    }
    if len(asked := [name for name, value in modes.items() if value]) > 1 and asked != ["--cfg", "-m"]:
        raise UserError(f"{' and '.join(asked)} exclude each other: leave one out")
    if known.cfg and known.multirun:
        raise UserError("--cfg prints the configuration of one run: leave out -m, and give every key one value")
    if known.resolve and not known.cfg:
        raise UserError("--resolve needs --cfg job: it resolves the references in what that prints")


def composed(prepared_: Sequence[str], word: str) -> tuple[DictConfig, str | None]:
    """(The configuration composed from the overrides that have one value; the folder of --config-dir). Raises what Hydra raises."""
    from hydra import compose, initialize_config_module
    from hydra.core.override_parser.overrides_parser import OverridesParser

    options, overrides = parted(prepared_)
    folder, parser = _config_dir(options), OverridesParser.create()
    single = [text for text in overrides if not parser.parse_override(text).is_sweep_override()]
    if folder is not None:
        single.append(f"hydra.searchpath=['file://{os.path.abspath(folder)}']")
    with initialize_config_module("r2m_cli.conf", version_base="1.3"):
        return compose(word, single), folder
