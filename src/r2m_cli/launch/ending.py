"""The last lines of a command: what it wrote, and the command to run next."""

from collections.abc import Iterable
from pathlib import Path

from r2m_cli.config.registry import has_own_models
from r2m_cli.config.schema import Config
from r2m_cli.files.run_folder import (
    ALPACA_EVAL,
    ANALYSIS,
    BEST_OF_N,
    BEST_OF_N_RESPONSES,
    COMPARISONS,
    EVALUATION,
    METRICS,
    PAIRS,
    POLICY_ADAPTER,
    SAMPLES,
    SUMMARY,
    WARNINGS,
    checkpoints,
)
from r2m_cli.text import command, place

# What users look for in a run's folder, in this order; the other files are for programs.
WRITTEN = ("policy", POLICY_ADAPTER, "reward_model", SUMMARY, METRICS, SAMPLES, WARNINGS,
           EVALUATION, ALPACA_EVAL, PAIRS, COMPARISONS, BEST_OF_N, BEST_OF_N_RESPONSES,
           ANALYSIS)  # fmt: skip
PICTURES = (".csv", ".png")  # of an analysis, whatever their names
# Keys used only to fit the model that the next command loads: task -> their prefixes.
MAKERS = {
    "sft": ("policy.path=", "policy.base=", "policy.fit."),
    "reward": ("reward.path=", "reward.base=", "reward.fit.", "reward.pretrain_epochs="),
}

# Keys of an evaluation or analysis that do not concern training; data.holdout may be 1 there.
LOOKING = ("eval.", "analysis.", "hydra.", "data.holdout=")


def ending(config: Config, folder: Path, overrides: Iterable[str]) -> list[str]:
    """The last lines of a task that succeeded.

    Args:
        folder: what it filled.
        overrides: those typed on the command line; the command after a fit keeps those that do not concern the fit.
    """
    if config.task in MAKERS:
        what = "policy" if config.task == "sft" else "reward model"
        return [
            f"the {what} is in {place(folder)}",
            f"next: {command('train', _with_the_model(config, folder, overrides))}",
        ]
    there = {path.name for path in folder.iterdir()}
    names = [name for name in WRITTEN if name in there]
    names += sorted(name for name in there - set(names) if name.endswith(PICTURES))
    lines = [f"wrote {place(folder)}: {', '.join(f'{n}/' if (folder / n).is_dir() else n for n in names)}"]
    if config.task == "train":
        lines += [f"next: {command('evaluate', [f'run={place(folder)}'])}"] if "policy" in there else []
        lines += [f"next: {command('report', [place(folder)])}"]
        return lines
    runs = [place(Path(run)) for run in (*([config.run] if config.run is not None else []), *config.runs)]
    if not runs:  # models before any training
        follows = command("train", [text for text in overrides if not text.lstrip("+").startswith(LOOKING)])
    elif config.task == "analyze":
        follows = command("report", runs)
    else:
        follows = command("analyze", [f"run={run}" for run in runs])
    return [*lines, f"next: {follows}"]


def stopped(config: Config, run_dir: Path) -> str:
    """The line for a task that was stopped: how to continue from what it saved."""
    if config.task in MAKERS:
        return "stopped; start the same command again to continue from the saved part of the fit"
    if config.task != "train":
        return "stopped"
    kept = checkpoints(run_dir)
    if not kept:
        return "stopped before the first checkpoint: there is nothing to resume; start again"
    step = kept[-1].name.removeprefix("step_")
    on = command("train", [f"resume={place(run_dir)}"])
    return f"stopped after step {step} of {config.train.steps}; continue with: {on}"


def _with_the_model(config: Config, folder: Path, overrides: Iterable[str]) -> list[str]:
    """The overrides for training with the fitted model."""
    made, other = ("policy", config.reward) if config.task == "sft" else ("reward", config.policy)
    dropped = ("output=", "hydra.", *MAKERS[config.task])
    kept = [text for text in overrides if not text.lstrip("+").startswith(dropped)]
    if not has_own_models(config.data.kind) and other.path is None and other.base is None:
        kept.append("reward.path=REWARD_MODEL" if made == "policy" else "policy.path=POLICY")
    return [*kept, f"{made}.path={place(folder)}"]
