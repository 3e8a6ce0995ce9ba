"""The configuration of a job: the composed one or, with resume= or run=, that of an earlier run with few changes."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from r2m_cli.checkpoints.continuation import RESUMABLE, continued, unfinished
from r2m_cli.config.check import keys, typed, validate
from r2m_cli.config.combinations import check_words
from r2m_cli.config.old_keys import translated
from r2m_cli.config.schema import Config
from r2m_cli.data.forms import BUILT_IN
from r2m_cli.errors import UserError
from r2m_cli.files.run_folder import CONFIG, JUDGED, METRICS, SAMPLES, checkpoints, finished
from r2m_cli.files.yaml_files import read_yaml
from r2m_cli.launch.hosts import with_hosts
from r2m_cli.text import from_home

# What may differ between a run and its evaluation or analysis.
EVALUABLE = ("task", "run", "seed", "data.", "rollout.", "eval.", "analysis.", "judge.", "engine.", "train.", "resume",
             "checkpoint.", "logger.")  # fmt: skip

MOVABLE = ("policy.path", "reward.path", "data.path", "policy.template", "reward.template")  # see `fingerprint.inputs`
NO_PATHS = ("smollm2", "chosen", *BUILT_IN)  # values of these keys that are not paths


def configured(composed: DictConfig, overrides: list[str]) -> Config:
    """The checked configuration of this job.

    Args:
        overrides: what was typed on the command line.

    Raises:
        UserError: a bad key or value; a folder that is not a run; a change that a resumed run does not allow.
    """
    config = _absolute(typed(composed))
    check_words(config)  # all other checks need the earlier run's values
    if config.resume is not None:
        folder = from_home(config.resume)
        config = replace(_from_run(config, folder, overrides, RESUMABLE), resume=config.resume)
        return with_hosts(continued(config, folder, _keys_of(overrides)))
    if config.run is not None:
        folder = from_home(config.run)
        saved = _from_run(config, folder, overrides, EVALUABLE)
        config = replace(saved, task=config.task, run=config.run, runs=config.runs, resume=None, engine=config.engine)
    config = with_hosts(config)
    validate(config)
    return config


def go_on(config: Config, run_dir: Path) -> tuple[Config, bool]:
    """(configuration, whether the job is already done) of a sweep's job that is started again in the folder of an earlier one.

    The configuration resumes from the last checkpoint if there is one.

    Raises:
        UserError: the folder holds a run of another configuration.
    """
    if not (run_dir / METRICS).is_file():
        return config, False
    saved = _absolute(_read(run_dir / CONFIG))
    known = replace(
        config,
        resume=saved.resume,
        train=replace(config.train, allow_changed=False),
        policy=replace(config.policy, path=config.policy.path or saved.policy.path),
        reward=replace(config.reward, path=config.reward.path or saved.reward.path, paths=saved.reward.paths),
    )
    if known != saved:
        new, old = OmegaConf.structured(known), OmegaConf.structured(saved)
        key = next(key for key in keys() if OmegaConf.select(new, key) != OmegaConf.select(old, key))
        raise UserError(
            f"{run_dir}: holds a run with {key}={OmegaConf.select(old, key)}, not {OmegaConf.select(new, key)}; choose "
            "another hydra.sweep.dir"
        )
    can_go_on = bool(checkpoints(run_dir))
    if finished(run_dir) and not (
        can_go_on and unfinished(run_dir, saved)
    ):  # without checkpoints (removed to save space) it counts as done
        return saved, True
    if can_go_on:
        return continued(replace(saved, resume=str(run_dir), train=config.train), run_dir, set()), False
    for name in (METRICS, SAMPLES, JUDGED):  # these steps are done again
        (run_dir / name).unlink(missing_ok=True)
    return config, False


def _from_run(composed: Config, folder: Path, overrides: list[str], free: tuple[str, ...]) -> Config:
    """The run's configuration with the `free` keys that were typed; any other change raises UserError."""
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: it has no config.yaml, so it is not a run folder")
    saved = _absolute(_read(folder / CONFIG))
    if saved.policy.path is None:  # a run always sets it before it writes its configuration
        raise UserError(f"{folder / 'config.yaml'}: not the configuration of a run; copy it again from the run")
    new, old = OmegaConf.structured(composed), OmegaConf.structured(saved)
    typed_keys = _keys_of(overrides)
    # A group of a section (data=file) changes only that section; an experiment may change any key.
    sections = {field.name for field in fields(Config)}
    groups = any("." not in key and key not in sections | {"hydra"} for key in typed_keys)

    for key in keys():
        value, kept = OmegaConf.select(new, key), OmegaConf.select(old, key)
        named = key in typed_keys or any(key.startswith(t + ".") for t in typed_keys)
        # A choice of a group (+experiment=x, ppo=grpo) must match the run; what was not typed keeps the run's value.
        filled = key in ("policy.path", "reward.path") and value is None
        if key == "reward.paths":  # members that were not named were fitted, and follow those that were
            filled = list(kept[: len(value)]) == list(value)
        if not (named or groups) or value == kept or filled:
            continue
        # A file that has moved may get its new path: resuming compares the contents.
        place = Path(kept) if key in MOVABLE and kept is not None else None
        moved = place is not None and place.is_absolute() and not place.exists()
        if not key.startswith(free) and not moved:
            raise UserError(
                f"{folder}: the run had {key}={kept}, which cannot become {value} here; start a new run instead"
            )
        if named:
            OmegaConf.update(old, key, value)
    result: Any = OmegaConf.to_object(old)
    return result  # type: ignore[no-any-return]


def _keys_of(overrides: list[str]) -> set[str]:
    return {text.lstrip("+").split("=", 1)[0] for text in overrides}


def _absolute(config: Config) -> Config:
    """The configuration with absolute paths for existing files: a run may be resumed from another folder, where the same
    relative path may be a different model, or not exist."""

    def full(name: Any) -> Any:
        path = from_home(name or "")
        return str(path.absolute()) if name not in (None, *NO_PATHS) and path.exists() else name

    policy, reward = config.policy, config.reward
    return replace(
        config,
        policy=replace(policy, path=full(policy.path), base=full(policy.base), template=full(policy.template)),
        reward=replace(
            reward,
            path=full(reward.path),
            base=full(reward.base),
            template=full(reward.template),
            paths=[full(path) for path in reward.paths],
        ),
        data=replace(config.data, path=full(config.data.path)),
        eval=replace(config.eval, against=full(config.eval.against), reward=full(config.eval.reward)),
    )


def _read(path: Path) -> Config:
    """A run's configuration as stored on disk. Raises UserError if the file is not one."""
    read = read_yaml(path)
    if not isinstance(read, DictConfig):
        raise UserError(f"{path}: not the configuration of a run; copy it again from the run")
    try:
        config: Config = typed(OmegaConf.create(translated(OmegaConf.to_container(read))))  # type: ignore[arg-type]
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return replace(config, train=replace(config.train, allow_changed=False))  # must be set again each time
