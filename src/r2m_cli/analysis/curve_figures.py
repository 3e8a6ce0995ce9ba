"""Plots of figures 5, 6 and 7."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd  # type: ignore[import-untyped, unused-ignore]
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from r2m_cli.reporting.groups import COLOURS
from r2m_cli.reporting.picture import DASHES, STYLE
from r2m_cli.reporting.runs import Run

Groups = dict[str, list[Run]]
STAGE_COLOURS = {
    "rollout": "#0072B2", "annotate": "#56B4E9", "baseline": "#CC79A7", "judge": "#F0E442", "critic_step": "#E69F00",
    "policy_step": "#009E73", "reward_step": "#D55E00",
}  # fmt: skip


def figure5(groups: Groups, path: Path) -> None:
    """Loss, reward (of the live and the initial model) and KL against steps; reward against KL with one dot per step."""
    panels = (("loss", "Policy loss", ""), ("reward", "Reward (live)", "score"),
              ("reward_frozen", "Reward of the initial model", "score"), ("kl", "KL to the reference", "nats"))  # fmt: skip
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 3, figsize=(12, 6.4), layout="constrained")
        flat = [ax for row in axes for ax in row]
        for ax, (name, title, unit) in zip(flat, panels):
            _lines(ax, groups, name)
            ax.set(title=title, xlabel="step", ylabel=unit)
        known = any(run.has("gold") for group in groups.values() for run in group)
        truth = ("gold", "Gold reward against KL", "gold") if known else (
            "reward_frozen", "Initial model's reward against KL", "score")  # fmt: skip
        for ax, (name, title, unit) in zip(flat[4:], (("reward", "Reward (live) against KL", "score"), truth)):
            _scatter(ax, groups, name)
            ax.set(title=title, xlabel="KL, nats per response", ylabel=unit)
        _finish(figure, flat, groups, path)


def figure6(groups: Groups, path: Path) -> None:
    """Mean rewards on the fixed prompts against steps: of the initial and the live reward model, and gold."""
    panels = (("eval/reward_frozen", "Initial reward model", "score"), ("eval/reward", "Live reward model", "score"),
              ("eval/gold", "Gold (true) reward", "gold"))  # fmt: skip
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
        for ax, (name, title, unit) in zip(axes, panels):
            _lines(ax, groups, name, smooth=False)
            ax.set(title=f"{title}, fixed prompts", xlabel="step", ylabel=unit)
        _finish(figure, list(axes), groups, path)


def figure7(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Seconds per step by stage (without evaluation), and peak memory; one bar per label."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 2 + 0.45 * len(found)), layout="constrained")
        at = range(len(found))
        starts = [0.0] * len(found)
        for stage, colour in STAGE_COLOURS.items():
            seconds = [costs["stages"].get(stage, 0.0) for costs in found.values()]
            if any(seconds):
                name = "light update (reward_step)" if stage == "reward_step" else stage
                left.barh(at, seconds, left=starts, color=colour, label=name)
                starts = [a + b for a, b in zip(starts, seconds)]
        left.set(title="Time of a step", xlabel="seconds")
        figure.legend(loc="outside lower center", ncols=4)
        right.barh(at, [costs["peak_memory_bytes"] / 2**20 for costs in found.values()], color=COLOURS[0])
        right.set(title="Peak memory of the process so far", xlabel="MiB")
        left.set_yticks(at, list(found))
        right.set_yticks(at, [])
        for ax in (left, right):
            ax.invert_yaxis()
            ax.set_axisbelow(True)
        figure.savefig(path, dpi=160)
        plt.close(figure)


def _lines(ax: Axes, groups: Groups, name: str, smooth: bool = True) -> None:
    """The mean over a label's runs, smoothed over a twentieth of the run; the values of single steps are drawn pale behind it."""
    for i, group in enumerate(groups.values()):
        mean = _mean(group, name)
        if mean.empty:
            continue
        colour, dashes = COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]
        window = max(1, len(mean) // 20) if smooth else 1
        if window > 1:
            ax.plot(mean.index, mean, color=colour, alpha=0.25, linewidth=0.8)
        ax.plot(mean.index, mean.rolling(window, center=True, min_periods=1).mean(), color=colour, linestyle=dashes)


def _scatter(ax: Axes, groups: Groups, name: str) -> None:
    for i, group in enumerate(groups.values()):
        points = pd.concat([_mean(group, "kl"), _mean(group, name)], axis="columns", join="inner")
        ax.plot(points.iloc[:, 0], points.iloc[:, 1], "o", color=COLOURS[i % len(COLOURS)], alpha=0.6, markersize=3,
                markeredgewidth=0)  # fmt: skip


def _mean(group: list[Run], name: str) -> pd.Series:
    """The metric's mean over the runs that measured it, at the steps that they all have."""
    curves = [run.metrics[name].dropna() for run in group if run.has(name)]
    if not curves:
        return pd.Series(dtype=float)
    return pd.concat(curves, axis="columns", join="inner").mean(axis="columns")


def _finish(figure: Figure, axes: list[Axes], groups: Groups, path: Path) -> None:
    for ax in axes:
        if not ax.has_data():
            ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", color="0.5")
            ax.set(xticks=[], yticks=[])
    for i, (label, group) in enumerate(groups.items()):
        name = label + (f" (mean of {len(group)})" if len(group) > 1 else "")
        figure.axes[0].plot([], [], color=COLOURS[i % len(COLOURS)], linestyle=DASHES[i // len(COLOURS) % len(DASHES)],
                            label=name)  # fmt: skip
    figure.legend(loc="outside lower center", ncols=min(4, len(groups)))
    figure.savefig(path, dpi=160)
    plt.close(figure)
