"""The files of a run folder: every name once, and the checkpoints in it."""

import json
import re
from pathlib import Path

from r2m_cli.files.regular import require_regular

CONFIG = "config.yaml"  # the resolved configuration
METRICS = "metrics.jsonl"  # one object a step
SAMPLES = "samples.jsonl"  # prompts, responses, rewards
SUMMARY = "summary.json"  # final figures; there when the run is finished
WARNINGS = "warnings.log"  # each warning once
JUDGED = "judged.jsonl"  # every label that a judge gave during the run
CHECKPOINTS = "checkpoints"  # step_N/, see `checkpoints`
POLICY = "policy"  # Hugging Face folders
POLICY_ADAPTER = "policy_adapter"
REWARD_MODEL = "reward_model"
TENSORBOARD = "tensorboard"

FIT = "fit.json"  # of a fitted model: how well it fits
EVALUATION = "evaluation.json"
PAIRS = "pairs.jsonl"  # of an evaluation: every pair's margin; beside a fitted reward model: the pairs that it was fitted on
COMPARISONS = "comparisons.jsonl"  # every verdict of a judge
ALPACA_EVAL = "alpaca_eval.json"  # the responses in AlpacaEval's format
BEST_OF_N = "best_of_n.csv"
BEST_OF_N_RESPONSES = "best_of_n.jsonl"
ANALYSIS = "analysis.json"

JOB = ".job"  # in a sweep: which job of it the folder is, and of which overrides
ERROR = "error.txt"  # in a sweep: why a job has no result
LAUNCH_LOG = "launch.log"  # what the launcher of the ranks said
OUTCOME = ".outcome.json"  # written by a rank that did not simply finish: {"kind": "error"|"crash"|"stopped", ...}
STOP = ".stop"  # the run is asked to stop
PANEL = ".panel"  # there while a panel stands on the terminal, which says itself that the run is stopping


def rank_log(run_dir: Path, rank: int) -> Path:
    """What a rank wrote on its standard error."""
    return run_dir / f"rank_{rank}.log"


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, `checkpoints/step_N`, oldest first."""
    found = [path for path in (run / CHECKPOINTS).glob("step_*") if path.is_dir()]
    return sorted((path for path in found if re.fullmatch(r"step_\d{1,15}", path.name, re.ASCII)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step_"))


def finished(run: Path) -> bool:
    """Whether a run has its summary. One that is empty, or no JSON object, is what a power cut left of it.

    Raises:
        UserError: something other than a regular file has its name.
    """
    file = run / SUMMARY
    if not file.exists():
        return False
    require_regular(file)
    try:
        return isinstance(json.loads(file.read_bytes()), dict)
    except (OSError, ValueError, RecursionError):
        return False


def remove_empty(folder: Path) -> None:
    """Remove an empty folder, and those of outputs/ or multirun/ above it that are empty then."""
    above = folder.relative_to(Path.cwd()).parents if folder.is_relative_to(Path.cwd()) else ()
    for place in (folder, *(path for path in above if path.parts[:1] in (("outputs",), ("multirun",)))):
        if any(place.iterdir()):
            break
        place.rmdir()
