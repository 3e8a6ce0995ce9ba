"""Figures 5, 6 and 7, from metrics.jsonl: loss, reward and KL of runs, their rewards on fixed prompts, their time and memory."""

from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped, unused-ignore]
import torch

from r2m_cli.analysis import curve_figures
from r2m_cli.analysis.results import Results
from r2m_cli.errors import UserError
from r2m_cli.files.run_folder import METRICS
from r2m_cli.maths.statistics import bootstrap_mean
from r2m_cli.reporting.runs import Run, load_runs

PLACES = ("outputs", "multirun")  # where r2m train puts its runs
CURVES = ("loss", "reward", "reward_frozen", "kl", "gold")
FIXED = ("eval/reward", "eval/reward_frozen", "eval/gold", "eval/kl")
STAGES = ("rollout", "annotate", "baseline", "judge", "critic_step", "policy_step", "reward_step", "eval")
LIGHT = "reward_step"
PAPER = "4.5 h / 4.4 h = 1.02"


def analyse(folders: list[str], results: Results) -> None:
    """Figures 5, 6 and 7 of the runs in `folders` or, if none is given, of all runs below outputs/ and multirun/.

    Runs that differ only in their seed share a label, as in `r2m report`.

    Raises:
        UserError: there is no run, or one is damaged.
    """
    places = folders or [place for place in PLACES if next(Path(place).rglob(METRICS), None)]
    if not places:
        raise UserError(
            "nothing to analyse: no run below outputs/ or multirun/ here; name runs=[A,B], run=RUN, or models and pairs "
            "(policy.path=FOLDER reward.path=FOLDER data=file data.path=FILE)"
        )
    groups: dict[str, list[Run]] = {}
    for run in load_runs(places):
        groups.setdefault(run.name, []).append(run)
    results.conditions |= {"runs": {label: [str(run.path) for run in group] for label, group in groups.items()}}
    figure5(groups, results)
    figure6(groups, results)
    figure7(groups, results)


def figure5(groups: dict[str, list[Run]], results: Results) -> None:
    """Loss, reward and KL by step, and reward against KL; numbers are means over the last tenth of the steps."""
    _points("figure5.csv", groups, CURVES, results)
    curve_figures.figure5(groups, results.folder / "figure5.png")
    results.figures["figure5"] = {
        label: {name: _over_seeds([_end(run, name) for run in group]) for name in CURVES}
        for label, group in groups.items()
    }
    for label, found in results.figures["figure5"].items():
        for name in ("reward", "kl"):
            if found[name] is not None:
                results.line("5", f"{label}: {name} at the end", found[name]["mean"])


def figure6(groups: dict[str, list[Run]], results: Results) -> None:
    """Mean rewards on the fixed evaluation prompts: before training, at their best, at the end."""
    _points("figure6.csv", groups, FIXED, results)
    curve_figures.figure6(groups, results.folder / "figure6.png")
    results.figures["figure6"] = {
        label: {name: _course([run.metrics[name].dropna() for run in group if run.has(name)]) for name in FIXED}
        for label, group in groups.items()
    }
    for label, found in results.figures["figure6"].items():
        name = next((name for name in ("eval/gold", "eval/reward_frozen") if found[name] is not None), None)
        if name is not None:
            results.line("6", f"{label}: {name} at the end", found[name]["end"]["mean"])


def figure7(groups: dict[str, list[Run]], results: Results) -> None:
    """Seconds per step by stage, without evaluation and without the first step, which includes warm-up; and peak memory.

    Intervals of the step time are over steps. The ratios compare with the first label with feedback=none, or else with the
    first label.
    """
    found = {label: _costs(group, results) for label, group in groups.items()}
    timed = {label: costs for label, costs in found.items() if costs is not None}
    if not timed:
        results.notes.append("figure 7 is left out: no run has two steps with step_time")
        return
    base = next((label for label in timed if _plain(groups[label][0])), next(iter(timed)))
    for label, costs in timed.items():
        costs["step_against_baseline"] = costs["step_seconds"].value / timed[base]["step_seconds"].value
        costs["memory_against_baseline"] = costs["peak_memory_bytes"] / timed[base]["peak_memory_bytes"]
        results.line("7", f"{label}: seconds of a step", costs["step_seconds"])
        if label != base:
            results.line("7", f"{label}: step against {base}", costs["step_against_baseline"], PAPER)
            results.line(
                "7", f"{label}: memory against {base}", costs["memory_against_baseline"], "58 GB / 57 GB = 1.02"
            )
        if costs["light_update_share"]:
            results.line("7", f"{label}: light update's share", costs["light_update_share"])
    results.figures["figure7"] = {"baseline": base, "labels": timed}
    results.table("figure7.csv", [_flat(label, costs) for label, costs in timed.items()])
    curve_figures.figure7(timed, results.folder / "figure7.png")


def _points(name: str, groups: dict[str, list[Run]], metrics: tuple[str, ...], results: Results) -> None:
    rows = []
    for label, group in groups.items():
        for run in group:
            for step, values in run.metrics.reindex(columns=list(metrics)).dropna(how="all").iterrows():
                rows.append({"label": label, "seed": run.seed, "step": step} | values.to_dict())
    if rows:
        results.table(name, rows)


def _end(run: Run, name: str) -> float | None:
    """Mean over the last tenth of the steps that measured it."""
    if not run.has(name):
        return None
    values = run.metrics[name].dropna()
    return float(values.iloc[-max(1, len(values) // 10) :].mean())


def _over_seeds(values: list[float | None]) -> dict[str, Any] | None:
    known = pd.Series([value for value in values if value is not None], dtype=float)
    if known.empty:
        return None
    return {"mean": float(known.mean()), "std": float(known.std(ddof=1)), "runs": len(known)}


def _course(curves: list[pd.Series]) -> dict[str, Any] | None:
    if not curves:
        return None
    return {
        "start": _over_seeds([float(curve.iloc[0]) for curve in curves]),
        "peak": _over_seeds([float(curve.max()) for curve in curves]),
        "end": _over_seeds([float(curve.iloc[-1]) for curve in curves]),
    }


def _costs(group: list[Run], results: Results) -> dict[str, Any] | None:
    """Seconds per step and per stage over all runs of a label, and the largest peak memory."""
    parts = [run.metrics.dropna(subset=["step_time"]).iloc[1:] for run in group if run.has("step_time")]
    steps = pd.concat(parts) if parts else pd.DataFrame()
    if steps.empty:
        return None
    columns = steps.reindex(columns=[f"time/{stage}" for stage in STAGES]).fillna(0.0)
    whole = steps["step_time"] - columns["time/eval"]
    mean = bootstrap_mean(torch.tensor(whole.to_numpy()), results.resamples, results.seed)
    stages = {stage: float(columns[f"time/{stage}"].mean()) for stage in STAGES if columns[f"time/{stage}"].any()}
    return {
        "steps": len(steps), "step_seconds": mean, "stages": stages,
        "light_update_share": stages.get(LIGHT, 0.0) / mean.value,
        "peak_memory_bytes": float(max(run.metrics["perf/peak_memory_bytes"].max() for run in group
                                       if run.has("perf/peak_memory_bytes"))),
    }  # fmt: skip


def _plain(run: Run) -> bool:
    feedback = run.config.get("feedback")
    return isinstance(feedback, dict) and feedback.get("kind") == "none"


def _flat(label: str, costs: dict[str, Any]) -> dict[str, Any]:
    row = {"label": label, "steps": costs["steps"]}
    mean = costs["step_seconds"]
    row |= dict(
        zip(("step_seconds", "step_seconds_low", "step_seconds_high"), (mean.value, *(mean.interval or ("", ""))))
    )
    row |= {f"{stage}_seconds": costs["stages"].get(stage, 0.0) for stage in STAGES}
    return row | {"light_update_share": costs["light_update_share"], "peak_memory_bytes": costs["peak_memory_bytes"]}
