"""The parent process: fit the missing models, write the resolved configuration, start the ranks, return the objective."""

import json
from dataclasses import replace
from pathlib import Path

from r2m_cli.config.combinations import reads_curves_only, without_reward_model
from r2m_cli.config.registry import FEEDBACKS, has_own_models
from r2m_cli.config.schema import Config
from r2m_cli.console import tell
from r2m_cli.errors import UserError
from r2m_cli.files.cache import build_once, read_json, write_folder
from r2m_cli.files.run_folder import ANALYSIS, EVALUATION, FIT, METRICS, SUMMARY, finished
from r2m_cli.launch.ending import ending
from r2m_cli.launch.preflight import new_folder, preflight
from r2m_cli.launch.ranks import execute
from r2m_cli.text import from_home, number, place

TOLD = ("accuracy", "loss", "pairs", "demonstrations")  # metrics of a fit that are shown in one line


def launch(config: Config, run_dir: Path, overrides: list[str] | None = None) -> Path:
    """Run the task, fitting missing models first. Returns the folder that it filled: `run_dir`, or a fitted model's folder.

    Args:
        overrides: those typed on the command line, for the last lines; None in a sweep, which prints its own.

    Raises:
        UserError: bad input, noticed here or by a rank.
        RankFailed: a rank crashed or was killed.
        SystemExit: 128 + signal after Ctrl-C or SIGTERM.
    """
    fits = config.task in ("sft", "reward")
    where = config.output if fits else place(run_dir)
    tell(f"{config.task}{f' in {where}' if where else ''}: checking models and data")
    preflight(config)
    if config.task == "train" and config.resume is None and (run_dir / METRICS).exists():
        raise UserError(
            f"hydra.run.dir={run_dir}: already holds a run; continue it with resume={run_dir}, or choose a new folder"
        )
    holds = [name for name in (METRICS, EVALUATION, ANALYSIS) if (run_dir / name).exists()]
    if config.task in ("evaluate", "analyze") and holds:
        raise UserError(f"hydra.run.dir={run_dir}: already holds another result ({holds[0]}); choose a new folder")
    if not reads_curves_only(config):
        from r2m_cli.data.source import described

        tell(f"reading {described(config.data)}")  # printed once: the fits of missing models read it too
    if fits:
        model = fit_once(config)
        _end(config, model, overrides)
        return model
    if not reads_curves_only(config):
        config = prepare(config)
    execute(config, run_dir)
    _end(config, run_dir, overrides)
    return run_dir


def _end(config: Config, folder: Path, overrides: list[str] | None) -> None:
    for line in ending(config, folder, overrides) if overrides is not None else []:
        tell(line)


def objective(run_dir: Path) -> float | None:
    """The objective of a finished training run, for a sweeper; None without a summary."""
    return read_json(run_dir / SUMMARY).get("objective") if finished(run_dir) else None


def prepare(config: Config) -> Config:
    """The configuration with a policy and a reward model that exist: missing ones are fitted now, once, and cached.

    In an ensemble, every missing member is fitted; member i, counted from 0 at reward.path, with the seed
    reward.fit.seed + i. A line on the terminal names the members whose scores cannot be calibrated.
    """
    if config.policy.path is None:
        path = fit_once(replace(config, task="sft", output=None))
        config = replace(config, policy=replace(config.policy, path=str(path)))
    if without_reward_model(config):
        return config
    c = config.reward
    members = [c.path, *c.paths]
    members += [None] * (c.members - len(members))
    names = [name or str(fit_once(_member(config, place))) for place, name in enumerate(members)]
    notes = [_without_states(name) for name in (*names, config.eval.reward)]
    if len(names) > 1:
        from r2m_cli.models.ensemble import uncalibrated

        notes.append(uncalibrated(names))
    for note in filter(None, notes):
        tell(note)
    return replace(config, reward=replace(c, path=names[0], paths=names[1:]))


def _without_states(name: str | None) -> str | None:
    """A note for a reward model from a run with feedback: loaded from its folder, it scores the text without states."""
    from r2m_cli.checkpoints.checkpoint import ADAPTER_CONFIG

    settings = from_home(name or "") / ADAPTER_CONFIG
    if name is None or not settings.is_file():
        return None
    kind = read_json(settings).get("kind")
    if kind in FEEDBACKS and FEEDBACKS[kind].states is None:
        return None
    return (
        f"note: {name} comes from a run with feedback and is used here without the policy's states: its trained head scores the "
        "text alone (r2m evaluate run=RUN uses both)"
    )


def _member(config: Config, place: int) -> Config:
    """The configuration that fits one member of an ensemble, or the only reward model."""
    c = config.reward
    alone = replace(c, path=None, paths=[], members=1, function=None, fit=replace(c.fit, seed=c.fit.seed + place))
    return replace(config, task="reward", output=None, reward=alone)


def fit_once(config: Config) -> Path:
    """The folder of the fitted policy (task sft) or reward model (task reward), fitted first if it does not exist yet.

    Raises UserError, also if config.output exists and is not empty: no file of the user is overwritten.
    """
    from r2m_cli.fitting.cached import policy_cache, reward_cache

    what = {"sft": "SFT policy", "reward": "reward model"}[config.task]
    output = None if config.output is None else new_folder(config.output)
    if config.task == "reward" and has_own_models(config.data.kind) and config.policy.path is None:
        path = fit_once(replace(config, task="sft", output=None))
        named = replace(config, policy=replace(config.policy, path=str(path)))
        cached = reward_cache(config)
        config = named
    else:
        cached = policy_cache(config) if config.task == "sft" else reward_cache(config)
    if output is not None:
        target = output
        write_folder(target, lambda folder: execute(config, folder))
    else:
        known = cached.is_dir()
        notice = f"no {what} for this configuration yet: fitting one (only once; it is kept in {cached})"
        target = build_once(cached.name, lambda folder: execute(config, folder), notice)
        if known and (target / FIT).is_file():
            tell(f"{what} from the cache: {target} {_figures(target)}")
    return target


def _figures(folder: Path) -> str:
    figures = json.loads((folder / FIT).read_text())
    return "(" + ", ".join(f"{name} {number(figures[name], 3)}" for name in TOLD if figures.get(name) is not None) + ")"
