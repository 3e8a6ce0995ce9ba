"""The configuration of a job: the composed one, or, with resume= and run=, an earlier run's own with little changed."""

import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from r2m_cli.errors import UserError
from r2m_cli.schema import Config
from r2m_cli.validate import keys, typed, validate

# What may differ between a run and its continuation: how long, how it is watched, on which machine.
RESUMABLE = ("train.", "resume", "eval.", "checkpoint.", "logger.", "engine.threads", "engine.timeout",
             "engine.rendezvous", "engine.node_rank")  # fmt: skip
# What may differ between a run and its evaluation.
EVALUABLE = ("task", "run", "seed", "data.", "eval.", "judge.", "engine.", "train.", "resume", "checkpoint.", "logger.")


def configured(composed: DictConfig, overrides: list[str]) -> Config:
    """The checked configuration of this job.

    Args:
        overrides: what was typed on the command line.

    Raises:
        UserError: a bad key or value; a folder that is no run; a change that would make a continuation another run.
    """
    config = typed(composed)
    validate(config)
    if config.resume is not None:
        folder = Path(config.resume).expanduser()
        config = replace(_from_run(config, folder, overrides, RESUMABLE), resume=config.resume)
        _check_position(config, folder)
    elif config.run is not None:
        folder = Path(config.run).expanduser()
        saved = _from_run(config, folder, overrides, EVALUABLE)
        config = replace(saved, task="evaluate", run=config.run, resume=None, engine=config.engine)
    validate(config)
    return config


def _from_run(composed: Config, folder: Path, overrides: list[str], free: tuple[str, ...]) -> Config:
    """The run's own configuration with the `free` keys that were typed; any other change is refused."""
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: no config.yaml there, so it is no run folder")
    saved = typed(OmegaConf.load(folder / "config.yaml"))  # type: ignore[arg-type]
    new, old = OmegaConf.structured(composed), OmegaConf.structured(saved)
    typed_keys = {text.lstrip("+").split("=", 1)[0] for text in overrides}
    # A group of a section (data=file) touches that section alone, an experiment whatever it likes.
    sections = {field.name for field in fields(Config)}
    groups = any("." not in key and key not in sections | {"hydra"} for key in typed_keys)

    for key in keys():
        value, kept = OmegaConf.select(new, key), OmegaConf.select(old, key)
        named = key in typed_keys or any(key.startswith(t + ".") for t in typed_keys)
        # A choice of a group (+experiment=x, ppo=grpo) must give what the run had; what was not typed stays as it was.
        filled = key in ("policy.path", "reward.path") and value is None
        if key == "reward.paths":  # the members that were not named were fitted and stand behind those that were
            filled = list(kept[: len(value)]) == list(value)
        if not (named or groups) or value == kept or filled:
            continue
        if not key.startswith(free):
            raise UserError(f"{folder}: the run had {key}={kept}, which cannot become {value}; start a new run instead")
        if named:
            OmegaConf.update(old, key, value)
    result: Any = OmegaConf.to_object(old)
    return result  # type: ignore[no-any-return]


def _check_position(config: Config, folder: Path) -> None:
    """Refuse, before anything is written, a continuation that has nothing to do."""
    found = sorted((folder / "checkpoints").glob("step_*/loop.json"), key=lambda p: int(p.parent.name[len("step_") :]))
    if not found:
        raise UserError(f"resume={config.resume}: no checkpoint below checkpoints/; the run ended before it wrote one")
    done = json.loads(found[-1].read_text())["step"]
    if done >= config.train.steps:
        raise UserError(f"resume={config.resume}: its {done} steps are done; raise train.steps to go on")
    if config.train.stop_at is not None and config.train.stop_at <= done:
        raise UserError(
            f"resume={config.resume}: {done} steps are done, so train.stop_at={config.train.stop_at} is past; raise it, or "
            "train.stop_at=null to run to the end"
        )
    before = OmegaConf.load(folder / "config.yaml")
    if before.train.steps != config.train.steps:
        print(
            f"r2m: train.steps was {before.train.steps} and is now {config.train.steps}: the schedules of w(t) and of the "
            "learning rate are laid out anew from here on",
            file=sys.stderr,
        )
