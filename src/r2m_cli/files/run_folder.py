"""The files of a run folder: every file name, defined once, and the run's checkpoints."""

import json
import re
from pathlib import Path

from r2m_cli.files.regular import require_regular

CONFIG = "config.yaml"  # the resolved configuration
METRICS = "metrics.jsonl"  # one object per step
SAMPLES = "samples.jsonl"  # prompts, responses, rewards
SUMMARY = "summary.json"  # final metrics; exists when the run is finished
WARNINGS = "warnings.log"  # each warning once
JUDGED = "judged.jsonl"  # every label from a judge during the run
CHECKPOINTS = "checkpoints"  # step_N/, see `checkpoints`
POLICY = "policy"  # Hugging Face folders
POLICY_ADAPTER = "policy_adapter"
REWARD_MODEL = "reward_model"
TENSORBOARD = "tensorboard"

FIT = "fit.json"  # of a fitted model: how well it fits
EVALUATION = "evaluation.json"
PAIRS = "pairs.jsonl"  # in an evaluation: every pair's margin; next to a fitted reward model: the pairs that it was fitted on
COMPARISONS = "comparisons.jsonl"  # every verdict of a judge
ALPACA_EVAL = "alpaca_eval.json"  # the responses in AlpacaEval's format
BEST_OF_N = "best_of_n.csv"
BEST_OF_N_RESPONSES = "best_of_n.jsonl"
ANALYSIS = "analysis.json"

JOB = ".job"  # in a sweep: the number and the overrides of the folder's job
ERROR = "error.txt"  # in a sweep: why a job has no result
LAUNCH_LOG = "launch.log"  # output of the launcher of the ranks
OUTCOME = ".outcome.json"  # written by a rank that did not finish normally: {"kind": "error"|"crash"|"stopped", ...}
STOP = ".stop"  # the run is asked to stop
PANEL = ".panel"  # exists while a panel is shown on the terminal; the panel itself shows that the run is stopping


def rank_log(run_dir: Path, rank: int) -> Path:
    """The log file of a rank: its standard error."""
    return run_dir / f"rank_{rank}.log"


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, `checkpoints/step_N`, oldest first."""
    found = [path for path in (run / CHECKPOINTS).glob("step_*") if path.is_dir()]
    return sorted((path for path in found if re.fullmatch(r"step_\d{1,15}", path.name, re.ASCII)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step_"))


def finished(run: Path) -> bool:
    """Whether a run has a valid summary. An empty or invalid one does not count: a power cut can leave it.

    Raises:
        UserError: the summary is not a regular file.
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
    """Remove an empty folder, and its parents within outputs/ or multirun/ that become empty."""
    above = folder.relative_to(Path.cwd()).parents if folder.is_relative_to(Path.cwd()) else ()
    for place in (folder, *(path for path in above if path.parts[:1] in (("outputs",), ("multirun",)))):
        if any(place.iterdir()):
            break
        place.rmdir()
