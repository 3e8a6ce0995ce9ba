"""Decides whether `resume=` can continue a run, and from which checkpoint: configuration, data and models must match."""

import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from r2m_cli.checkpoints import fingerprint
from r2m_cli.checkpoints.manifest import LOOP, damage
from r2m_cli.checkpoints.state import LoopState
from r2m_cli.config.check import keys, validate
from r2m_cli.config.old_keys import translated
from r2m_cli.config.schema import Config
from r2m_cli.errors import UserError
from r2m_cli.files.cache import read_json
from r2m_cli.files.run_folder import checkpoints, finished

# Keys that may differ when a run is resumed: its length, how it is monitored, on which machine it runs.
RESUMABLE = ("train.", "resume", "eval.", "checkpoint.", "logger.", "engine.threads", "engine.timeout",
             "engine.rendezvous", "engine.node_rank", "judge.")  # fmt: skip
# Keys that are set separately for each part of a run.
OF_THIS_PART = ("resume", "run", "train.steps", "train.stop_at", "train.allow_changed")


@dataclass(frozen=True)
class Point:
    """The point from which a run continues."""

    checkpoint: Path
    state: dict[str, Any]  # its loop.json
    damaged: list[tuple[Path, str]]  # newer checkpoints and what is wrong with each

    @property
    def step(self) -> int:
        """The last finished step."""
        return int(self.state["step"])

    @property
    def inputs(self) -> fingerprint.Inputs:
        """Names and digests of the run's inputs when it began."""
        return fingerprint.plain(self.state.get("inputs"))


def continued(config: Config, folder: Path, named: set[str]) -> Config:
    """The checked configuration of a resumed run. Damaged checkpoints are renamed; nothing else is changed.

    Args:
        config: the run's configuration, with the typed values of the keys in `named`.

    Raises:
        UserError: there is no valid checkpoint, nothing is left to do, or configuration, data or models have changed.
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
        _note(f"{checkpoint}/{reason}; it was renamed to {aside.name}, and the run continues from step {point.step}")
    return config


def find(folder: Path) -> Point:
    """The newest valid checkpoint of a run. Raises UserError if there is none."""
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
        f"resume={folder}: no valid checkpoint ({listed}); copy the run folder again, or start a new run "
        "(checkpoint.keep=2 would keep one more)"
    )


def unfinished(folder: Path, config: Config) -> bool:
    """Whether a run with all steps done still lacks its summary or the models that it should export."""
    models = ("policy", "reward_model") if config.checkpoint.export else ()
    return not (finished(folder) and all((folder / name / "config.json").is_file() for name in models))


def steps_are_done(state: LoopState, folder: Path, config: Config) -> bool:
    """Whether no step is left: all are done, or the guard ended the run and only summary or export are missing."""
    by_guard = state.ended == "guard" and not finished(folder)
    return state.step >= config.train.steps or by_guard


def changed_since(config: Config, run: Path) -> list[str]:
    """Notes for an evaluation or analysis of a run: data or models whose content has changed since the run."""
    found = checkpoints(run)
    if not found or damage(found[-1]) is not None:
        return []
    before, now = fingerprint.plain(read_json(found[-1] / LOOP).get("inputs")), fingerprint.inputs(config)
    same = {key: was for key, was in before.items() if now.get(key, {}).get("name") == was.get("name")}
    return [f"{text}: it has changed since the run" for text in fingerprint.changed(same, now)]


def _from_position(config: Config, folder: Path, point: Point, stops: bool) -> Config:
    """The configuration without a train.stop_at that is already behind. Raises UserError if there is nothing left to do.

    Args:
        stops: whether train.stop_at was typed.
    """
    done, stop_at = point.step, config.train.stop_at
    if steps_are_done(LoopState.of(point.state), folder, config):
        if point.state.get("ended", "steps") is None or not unfinished(folder, config):
            raise UserError(f"resume={config.resume}: its {done} steps are done; raise train.steps to continue")
        _note(f"resume={config.resume}: its {done} steps are done; writing the missing summary or models now")
        return replace(config, train=replace(config.train, stop_at=None))
    if stop_at is not None and stop_at <= done:
        if stops:
            raise UserError(
                f"resume={config.resume}: {done} steps are already done, so train.stop_at={stop_at} has no effect; raise it, or set "
                "train.stop_at=null to run to the end"
            )
        config = replace(config, train=replace(config.train, stop_at=None))
    return config


def _check_inputs(config: Config, point: Point) -> set[str]:
    """Raises UserError if data or models are not those of the run, unless train.allow_changed=true.

    Returns the keys whose content has been compared: these files may have moved.
    """
    before, now = point.inputs, fingerprint.inputs(config)
    if not before:
        _note(f"{point.checkpoint}: does not record the data and models of the run; they are not compared")
        return set()
    texts = fingerprint.changed(before, now)
    if texts and not config.train.allow_changed:
        raise UserError(
            f"resume={config.resume}: changed since the run began: {'; '.join(texts)}. Restore it, or add "
            "train.allow_changed=true to continue with the current content"
        )
    for text in texts:
        _note(f"continuing from step {point.step} with a changed {text}, because of train.allow_changed=true")
    unknown = [key for key in before | now if any(x.get(key, {}).get("digest") is None for x in (before, now))]
    return {key.split("[")[0] for key in before} - {key.split("[")[0] for key in unknown}


def _check_config(config: Config, folder: Path, point: Point, known: set[str]) -> None:
    """Print which allowed keys of the configuration have changed since the checkpoint; refuse all other changes.

    Args:
        known: keys that are not reported: typed just now, or compared by content.

    Raises:
        UserError: config.yaml was edited in a key that must not change.
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
                f"{folder / 'config.yaml'}: {key}={value}, but the run had {key}={kept}, which cannot change; restore it, or "
                "start a new run"
            )
        _note(f"{folder / 'config.yaml'}: {key}={value} from here on; the checkpoint was written with {kept}")
    steps = OmegaConf.select(old, "train.steps", default=config.train.steps)
    if steps != config.train.steps:
        _note(
            f"train.steps was {steps} and is now {config.train.steps}: the schedules of w(t) and of the "
            "learning rate use the new number from here on"
        )


def _note(text: str) -> None:
    print(f"r2m: {text}", file=sys.stderr, flush=True)
