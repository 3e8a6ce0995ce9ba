"""Reads the configuration files of runs. They may come from anywhere, so size, depth and aliases are limited."""

from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from r2m_cli.errors import UserError
from r2m_cli.files.regular import require_regular

LARGEST = 1 << 20  # bytes; r2m writes about 8,000
DEEPEST = 50  # levels; r2m writes four


def read_yaml(path: Path) -> Any:
    """Read a YAML file with OmegaConf.

    Aliases (`*name`) are refused: r2m writes none, and a few lines of them can expand to more than fits into memory.

    Raises:
        UserError: the file is not a regular file, is too large or too deep, has aliases, or is not YAML.
    """
    require_regular(path)
    if path.stat().st_size > LARGEST:
        raise UserError(
            f"{path}: larger than {LARGEST:,} bytes, so it is not a configuration; copy it again from the run"
        )
    try:
        text = path.read_text(encoding="utf-8")
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.events.CollectionStartEvent)
            depth -= isinstance(event, yaml.events.CollectionEndEvent)
            if isinstance(event, yaml.events.AliasEvent):
                raise UserError(f"{path}: has YAML aliases (*name), which r2m never writes; write the values out")
            if depth > DEEPEST:  # the parser would refuse it too, but only after quadratic time
                raise UserError(f"{path}: not valid YAML (more than {DEEPEST} levels); copy it again from the run")
        return OmegaConf.create(text)
    except UserError:
        raise
    except Exception as error:  # errors of yaml or omegaconf
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
