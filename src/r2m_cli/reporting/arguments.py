"""The command line of `r2m report`: run folders as bare arguments, in addition to Hydra's overrides."""

from dataclasses import fields
from pathlib import Path

from r2m_cli.config.schema import ReportConfig

KEYS = {field.name for field in fields(ReportConfig)}
# Hydra's flags that take a value; the value is not a run folder.
WITH_VALUE = {
    "-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir", "-i", "--info",
    "-sc", "--shell-completion", "--shell_completion", "--experimental-rerun",
}  # fmt: skip


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split the arguments after `r2m report` into (arguments for Hydra, run folders).

    An argument is an override if it begins with a key of the report, with `hydra` or with one of Hydra's signs. Otherwise it is
    a folder if it has no `=`, if it exists, or if a slash comes before its `=`: `multirun/method=rloo/seed=0,world=0`. The rest
    is left to Hydra, which reports the unknown key.
    """
    overrides: list[str] = []
    folders: list[str] = []
    for before, argument in zip(["", *arguments], arguments):
        is_folder = not (argument.startswith("-") or before in WITH_VALUE) and _is_folder(argument)
        (folders if is_folder else overrides).append(argument)
    return overrides, folders


def _is_folder(argument: str) -> bool:
    key, equals, _ = argument.partition("=")
    if equals and (key in KEYS or key.lstrip("+~").startswith("hydra")):
        return False
    return not equals or "/" in key or Path(argument).exists()
