"""The figure of a report: gold, proxy and KL against steps, and gold against KL."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib.pyplot as plt
import pandas as pd  # type: ignore[import-untyped, unused-ignore]
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from r2m_cli.errors import UserError
from r2m_cli.reporting.groups import COLOURS, Group, grouped, truth_of
from r2m_cli.reporting.runs import Run

Dashes = Literal["-", "--", ":", "-."]
DASHES: tuple[Dashes, ...] = ("-", "--", ":", "-.")
WIDTH = 14.0  # inches
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.unicode_minus": False,  # the same minus sign as in the tables
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": "0.25",
    "axes.edgecolor": "0.4",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.92",
    "grid.linewidth": 0.8,
    "xtick.color": "0.35",
    "ytick.color": "0.35",
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "text.parse_math": False,  # a dollar sign in a run's name is not maths
}


class Look(NamedTuple):
    """How the runs of one label are drawn."""

    colour: str
    dashes: Dashes


def draw(runs: list[Run], path: Path, dpi: int = 200) -> Path:
    """Write the figure of `runs` to `path`; returns the path.

    Four panels: gold, the proxy (the initial, frozen reward model) and KL against steps; gold against KL. One line
    per label; if several runs (seeds) share a label, their mean over the steps that all of them reached, with a
    band of one standard deviation. A star marks gold's peak, a dot the end. Without gold, the live reward is drawn
    instead, without a star: the peak of a changing reward has no meaning.

    Raises:
        UserError: the runs hold neither gold nor reward, or the file's kind is unknown.
    """
    groups = grouped(runs)
    truth = truth_of(groups)
    looks = {
        group.name: Look(COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)])
        for number, group in enumerate(groups)
    }
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 4, figsize=(WIDTH, 3.6))
        figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.06)
        axes[3].sharey(axes[0])
        for group in groups:
            look = looks[group.name]
            for ax, name in zip(axes, (truth, "reward_frozen", "kl"), strict=False):
                _against_steps(ax, group.table(name), look, star=ax is axes[0] and name == "gold")
            _against_kl(axes[3], group.table(truth), group.table("kl"), look, star=truth == "gold")
        _name_panels(axes, truth)
        _legend(figure, looks, truth, groups)
        try:
            figure.savefig(path, dpi=dpi)
        except ValueError as error:  # the error names the file types that matplotlib can write
            raise UserError(f"out: {path}: {error}") from error
        finally:
            plt.close(figure)
    return path


def _against_steps(ax: Axes, values: pd.DataFrame, look: Look, star: bool) -> None:
    if values.empty:
        return
    mean = values.mean(axis="columns")
    ax.plot(mean.index, mean, color=look.colour, linestyle=look.dashes)
    if values.shape[1] > 1:
        spread = values.std(axis="columns", ddof=1)
        ax.fill_between(mean.index, mean - spread, mean + spread, color=look.colour, alpha=0.16, linewidth=0)
    _mark(ax, mean.index[-1], mean.iloc[-1], look, "o")
    if star:
        _mark(ax, mean.idxmax(), mean.max(), look, "*")


def _against_kl(ax: Axes, truth: pd.DataFrame, kl: pd.DataFrame, look: Look, star: bool) -> None:
    if truth.empty or kl.empty:
        return
    mean = pd.concat([kl.mean(axis="columns"), truth.mean(axis="columns")], axis="columns", join="inner")
    if mean.empty:
        return
    mean.columns = ["kl", "truth"]
    ax.plot(mean["kl"], mean["truth"], color=look.colour, linestyle=look.dashes)
    _mark(ax, mean["kl"].iloc[-1], mean["truth"].iloc[-1], look, "o")
    if star:
        peak = mean["truth"].idxmax()
        _mark(ax, mean["kl"][peak], mean["truth"][peak], look, "*")


def _mark(ax: Axes, x: float, y: float, look: Look, marker: str) -> None:
    size = 14 if marker == "*" else 6
    ax.plot(x, y, marker, color=look.colour, markersize=size, markeredgecolor="white", zorder=5, clip_on=False)


def _name_panels(axes: list[Axes], truth: str) -> None:
    good = "Gold (true) reward" if truth == "gold" else "Live reward (no gold in these runs)"
    titles = (
        good,
        "Proxy: the initial reward model",
        "KL to the reference",
        f"{good.split(' (')[0]} against KL",
    )
    units = ("gold reward" if truth == "gold" else "reward", "score", "nats per response")
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title)
    for ax, unit in zip(axes, units, strict=False):
        ax.set(xlabel="step", ylabel=unit)
    axes[3].set(xlabel="KL, nats per response", ylabel=units[0])
    for ax in axes:
        if not ax.has_data():
            ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", color="0.5")
            ax.set(xticks=[], yticks=[])


def _legend(figure: Figure, looks: dict[str, Look], truth: str, groups: list[Group]) -> None:
    handles = [Line2D([], [], color=look.colour, linestyle=look.dashes, label=label) for label, look in looks.items()]
    if truth == "gold":
        handles.append(Line2D([], [], color="0.45", marker="*", markersize=11, linestyle="", label="gold's peak"))
    handles.append(Line2D([], [], color="0.45", marker="o", markersize=5, linestyle="", label="end"))
    seeds = max(len(group.runs) for group in groups)
    if seeds > 1:
        handles.append(Line2D([], [], color="0.8", linewidth=7, label=f"mean ± sd, {seeds} seeds"))
    if not any(run.has(f"eval/{truth}") for group in groups for run in group.runs):
        handles.append(Line2D([], [], linestyle="", label="rollouts, mean over 5% of the steps"))
    widths = [0.7 + 0.07 * len(str(handle.get_label())) for handle in handles]  # inches: handle, characters
    columns = len(handles) if sum(widths) < WIDTH else max(1, int(WIDTH / max(widths)))
    figure.set_figheight(3.4 + 0.2 * -(-len(handles) // columns))  # the panels keep their height
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=9)
