"""The configuration of a job: the composed one, or, with resume=RUN_DIR, the run's own with what may change changed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from r2m_cli.errors import UserError
from r2m_cli.schema import Config
from r2m_cli.validate import keys, typed, validate

# What may differ between a run and its continuation: how long, how it is watched, on which devices.
FREE = ("train.", "resume", "eval.", "checkpoint.", "logger.", "engine.threads", "engine.timeout", "engine.rendezvous",
        "engine.node_rank")  # fmt: skip


def configured(composed: DictConfig, overrides: list[str]) -> Config:
    """The checked configuration of this job.

    Args:
        overrides: what was typed on the command line.

    Raises:
        UserError: a bad key or value; a folder that is no run; a change that would make the continuation another run.
    """
    config = typed(composed)
    if config.resume is not None:
        config = _resumed(config, overrides)
    validate(config)
    return config


def _resumed(composed: Config, overrides: list[str]) -> Config:
    assert composed.resume is not None
    saved_file = Path(composed.resume).expanduser() / "config.yaml"
    if composed.task != "train":
        raise UserError(f"resume={composed.resume}: only `r2m train` can be resumed")
    if not saved_file.is_file():
        raise UserError(f"resume={composed.resume}: no config.yaml there, so it is no run folder")
    saved = typed(OmegaConf.load(saved_file))  # type: ignore[arg-type]
    new, old = OmegaConf.structured(composed), OmegaConf.structured(saved)
    typed_keys = {text.lstrip("+").split("=", 1)[0] for text in overrides}
    groups = any("." not in key and key not in ("seed", "resume", "hydra") for key in typed_keys)

    for key in keys():
        value, kept = OmegaConf.select(new, key), OmegaConf.select(old, key)
        named = key in typed_keys or any(key.startswith(t + ".") for t in typed_keys)
        # A choice of a group (+experiment=x, ppo=grpo) must give what the run had; nothing typed keeps what it had.
        if not (named or groups) or value == kept or (key in ("policy.path", "reward.path") and value is None):
            continue
        if not key.startswith(FREE):
            raise UserError(
                f"resume={composed.resume}: {key} was {kept} and cannot become {value}; start a new run instead"
            )
        if named:
            OmegaConf.update(old, key, value)
    result: Any = OmegaConf.to_object(old)
    return replace(result, resume=composed.resume)
