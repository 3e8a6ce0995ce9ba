"""Turns the configuration into a typed object; refuses unknown keys, values out of range, and combinations that cannot work."""

import difflib
import math
from dataclasses import is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from r2m_cli.config.combinations import check_combinations
from r2m_cli.config.old_keys import what_became_of
from r2m_cli.config.schema import Config
from r2m_cli.config.values import AT_LEAST, AT_MOST, CHOICES, LARGEST, LARGEST_FLOAT, SEEDS, UNIT_INTERVAL, fresh_size
from r2m_cli.errors import UserError

GROUPS = ("data", "engine", "feedback", "logger", "policy", "ppo", "reward", "rollout")  # folders of conf/
# Appended groups overwrite each other in the order in which they are composed. This is the intended order: a method's keys
# overwrite those of an experiment or a world, and +debug makes any run smaller.
APPENDED = ("sweep", "experiment", "world", "method", "debug")


def typed(container: DictConfig, schema: type = Config) -> Any:
    """The composed configuration as a dataclass instance, with every key checked against the schema.

    Hydra's own check accepts `+ppo.typo=3`; merging the plain container onto the dataclasses does not.

    Raises:
        UserError: an unknown key (with the nearest known one) or a value of the wrong type.
    """
    try:
        plain = OmegaConf.to_container(container, resolve=True, throw_on_missing=True)
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), plain))
    except ConfigKeyError as error:
        raise UserError(unknown_key(str(error.full_key), schema)) from None
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{error.full_key}: {reason}" if error.full_key else reason) from None
    except (
        ValueError,
        TypeError,
        OverflowError,
        RecursionError,
    ) as error:  # from a resolver, or a number too large for any type
        raise UserError(f"the configuration has a value that cannot be read: {error}") from None


def unknown_key(key: str, schema: type = Config) -> str:
    """The error line for a key, or a group of choices, that does not exist."""
    if schema is Config and (became := what_became_of(key)):
        return became
    known = keys(schema)
    groups = {**{name: name for name in GROUPS}, **{name: f"+{name}" for name in APPENDED}} if schema is Config else {}
    if near := difflib.get_close_matches(key, groups, n=1, cutoff=0.8):
        return f"unknown configuration key {key}: did you mean {groups[near[0]]}=...?"
    near = difflib.get_close_matches(key, known, n=1) or [k for k in known if k.split(".")[-1] == key.split(".")[-1]]
    hint = f"did you mean {near[0]}?" if near else "--cfg job prints every key"
    return f"unknown configuration key {key}: {hint}"


def _check_size(key: str, value: Any) -> None:
    """Raises UserError for a number that is infinite or out of bounds (AT_MOST, LARGEST, LARGEST_FLOAT)."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key}={value}: must be a finite number")
    if not isinstance(value, int | float) or key in SEEDS:
        return
    most = AT_MOST.get(key, LARGEST if isinstance(value, int) else LARGEST_FLOAT)
    if value > most:
        raise UserError(
            f"{key}={value:.0e}: must be at most {most:.10g}"
            if value < 1e300
            else f"{key}: must be at most {most:.10g}"
        )
    if value < -most:
        raise UserError(f"{key}: must be at least {-most:.10g}")


def keys(schema: type = Config) -> list[str]:
    """Every leaf key of a schema, dotted, in order."""

    def walk(node: DictConfig, prefix: str) -> list[str]:
        found: list[str] = []
        for name in node:
            value = node._get_node(name)
            path = prefix + str(name)
            if isinstance(value, DictConfig) and is_dataclass(OmegaConf.get_type(value)):
                found += walk(value, path + ".")
            else:
                found.append(path)
        return found

    return walk(OmegaConf.structured(schema), "")


def validate(config: Config) -> None:
    """Check the values that types cannot check, and the combinations that cannot work.

    Raises:
        UserError: one line with the key, the value and how to fix it.
    """
    tree = OmegaConf.structured(config)

    def value(key: str) -> Any:
        return OmegaConf.select(tree, key)

    for key, allowed in CHOICES.items():
        if value(key) not in allowed:
            raise UserError(f"{key}={value(key)}: choose one of {', '.join(map(str, allowed))}")
    for key, least in AT_LEAST.items():
        if not value(key) >= least:  # also false for NaN
            raise UserError(f"{key}={value(key)}: must be at least {least:g}")
    for key in SEEDS:
        if value(key) >= 2**63:
            raise UserError(f"{key}={value(key)}: must be below 2^63")
    for key in keys():
        _check_size(key, value(key))
    for key in UNIT_INTERVAL:
        if not 0 <= value(key) <= 1:
            raise UserError(f"{key}={value(key)}: must lie between 0 and 1")
    for node in ("policy", "reward"):
        try:
            fresh_size(value(f"{node}.size"))
        except ValueError as error:
            raise UserError(f"{node}.size={value(f'{node}.size')}: {error}") from None
    check_combinations(config)
