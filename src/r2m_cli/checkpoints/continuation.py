"""From where, and whether, `resume=` goes on: the newest sound checkpoint, and what the run began with."""

import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from r2m_cli.checkpoints import fingerprint
from r2m_cli.checkpoints.manifest import LOOP, damage
from r2m_cli.config.check import keys, validate
from r2m_cli.config.old_keys import translated
from r2m_cli.config.schema import Config
from r2m_cli.errors import UserError
from r2m_cli.files.cache import read_json
from r2m_cli.files.run_folder import SUMMARY, checkpoints

# What may differ between a run and its continuation: how long, how it is watched, on which machine.
RESUMABLE = ("train.", "resume", "eval.", "checkpoint.", "logger.", "engine.threads", "engine.timeout",
             "engine.rendezvous", "engine.node_rank", "judge.")  # fmt: skip
OF_THIS_PART = ("resume", "run", "train.steps", "train.stop_at", "train.allow_changed")  # new in each part of a run


@dataclass(frozen=True)
class Point:
    """Where a run goes on."""

    checkpoint: Path
    state: dict[str, Any]  # its loop.json
    damaged: list[tuple[Path, str]]  # newer ones and what is wrong with each

    @property
    def step(self) -> int:
        """The last step that is done."""
        return int(self.state["step"])

    @property
    def inputs(self) -> fingerprint.Inputs:
        """What the run read, as it was."""
        return fingerprint.plain(self.state.get("inputs"))


def continued(config: Config, folder: Path, named: set[str]) -> Config:
    """The checked configuration of a continuation. Damaged checkpoints are put aside, everything else is left as it is.

    Args:
        config: the run's own, with the keys in `named` as they were typed.

    Raises:
        UserError: no sound checkpoint; nothing left to do; a configuration, data or models that are not the run's.
    """
    point = find(folder)
    config = _from_position(config, folder, point, "train.stop_at" in named)
    validate(config)
    compared = _check_inputs(config, point)
    _check_config(config, folder, point, named | compared)
    for checkpoint, reason in point.damaged:
        aside = checkpoint.with_name(f"damaged_{checkpoint.name}")
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
        _note(f"{checkpoint}/{reason}; it is now {aside.name}, and the run goes on from step {point.step}")
    return config


def find(folder: Path) -> Point:
    """The newest sound checkpoint of a run. Raises UserError if there is none."""
    damaged: list[tuple[Path, str]] = []
    for checkpoint in reversed(checkpoints(folder)):
        reason = damage(checkpoint)
        if reason is None:
            return Point(checkpoint, read_json(checkpoint / LOOP), damaged)
        damaged.append((checkpoint, reason))
    if not damaged:
        raise UserError(f"resume={folder}: no checkpoint below checkpoints/; the run ended before it wrote one")
    listed = "; ".join(f"{checkpoint.name}/{reason}" for checkpoint, reason in damaged)
    raise UserError(
        f"resume={folder}: no sound checkpoint ({listed}); copy the run folder again, or start a new run "
        "(checkpoint.keep=2 would keep one more)"
    )


def unfinished(folder: Path, config: Config) -> bool:
    """Whether a run whose steps are done lacks its end: the summary, or the models that it was to export."""
    models = ("policy", "reward_model") if config.checkpoint.export else ()
    return not all((folder / name).exists() for name in (SUMMARY, *models))


def steps_are_done(state: dict[str, Any], folder: Path, config: Config) -> bool:
    """Whether no step is left: all are done, or a guard ended the run and only its end is missing."""
    by_guard = state.get("ended") == "guard" and not (folder / SUMMARY).exists()
    return bool(state["step"] >= config.train.steps or by_guard)


def changed_since(config: Config, run: Path) -> list[str]:
    """Notes for an evaluation or analysis of a run: what it was trained with and reads now has another content."""
    found = checkpoints(run)
    if not found or damage(found[-1]) is not None:
        return []
    before, now = fingerprint.plain(read_json(found[-1] / LOOP).get("inputs")), fingerprint.inputs(config)
    same = {key: was for key, was in before.items() if now.get(key, {}).get("name") == was.get("name")}
    return [f"{text}: it has changed since the run" for text in fingerprint.changed(same, now)]


def _from_position(config: Config, folder: Path, point: Point, stops: bool) -> Config:
    """The continuation without the stop that its run has made already. Raises UserError for one that has nothing to do.

    Args:
        stops: whether train.stop_at was typed.
    """
    done, stop_at = point.step, config.train.stop_at
    if steps_are_done(point.state, folder, config):
        if point.state.get("ended", "steps") is None or not unfinished(folder, config):
            raise UserError(f"resume={config.resume}: its {done} steps are done; raise train.steps to go on")
        _note(f"resume={config.resume}: its {done} steps are done; what is missing at its end is made now")
        return replace(config, train=replace(config.train, stop_at=None))
    if stop_at is not None and stop_at <= done:
        if stops:
            raise UserError(
                f"resume={config.resume}: {done} steps are done, so train.stop_at={stop_at} is past; raise it, or "
                "train.stop_at=null to run to the end"
            )
        config = replace(config, train=replace(config.train, stop_at=None))
    return config


def _check_inputs(config: Config, point: Point) -> set[str]:
    """Raises UserError where data or models are not those of the run, unless train.allow_changed says that they may.

    Returns the keys whose content has been compared: what has moved may go by another name.
    """
    before, now = point.inputs, fingerprint.inputs(config)
    if not before:
        _note(f"{point.checkpoint}: does not say what data and models the run began with; they are not compared")
        return set()
    texts = fingerprint.changed(before, now)
    if texts and not config.train.allow_changed:
        raise UserError(
            f"resume={config.resume}: not what the run began with: {'; '.join(texts)}. Put it back, or add "
            "train.allow_changed=true to go on with what is there now"
        )
    for text in texts:
        _note(f"from step {point.step} on with another {text}: train.allow_changed=true")
    unknown = [key for key in before | now if any(x.get(key, {}).get("digest") is None for x in (before, now))]
    return {key.split("[")[0] for key in before} - {key.split("[")[0] for key in unknown}


def _check_config(config: Config, folder: Path, point: Point, known: set[str]) -> None:
    """Say what of the run's configuration is new since its checkpoint; refuse what may not be.

    Args:
        known: keys that need no word: typed just now, or compared by content.

    Raises:
        UserError: config.yaml was edited where a run must stay as it was.
    """
    was = point.state.get("config")
    if not isinstance(was, dict):
        return
    new, old = OmegaConf.structured(config), OmegaConf.create(translated(was))
    for key in keys():
        value = OmegaConf.select(new, key)
        kept = OmegaConf.select(old, key, default=value)
        if value == kept or key in OF_THIS_PART or key in known:
            continue
        if not key.startswith(RESUMABLE):
            raise UserError(
                f"{folder / 'config.yaml'}: {key}={value}, but the run had {key}={kept}, which cannot change; put it back, or "
                "start a new run"
            )
        _note(f"{folder / 'config.yaml'}: {key}={value} from here on; the checkpoint was made with {kept}")
    steps = OmegaConf.select(old, "train.steps", default=config.train.steps)
    if steps != config.train.steps:
        _note(
            f"train.steps was {steps} and is now {config.train.steps}: the schedules of w(t) and of the "
            "learning rate are laid out anew from here on"
        )


def _note(text: str) -> None:
    print(f"r2m: {text}", file=sys.stderr, flush=True)
