"""Plots of figures 1, 2 and 9."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from r2m_cli.maths.statistics import LEVEL, Estimate
from r2m_cli.reporting.groups import COLOURS
from r2m_cli.reporting.picture import STYLE
from r2m_cli.text import fixed

SIMILARITY = "similarity, (1 + cosine) / 2"


def layers(found: list[dict[str, Any]], path: Path) -> None:
    """Figure 1: similarity of same-label and different-label pairs by layer, and their gap, with intervals."""
    at = [row["layer"] for row in found]
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
        for name, colour in (("same", COLOURS[0]), ("different", COLOURS[1])):
            _band(left, at, [row[name] for row in found], colour, f"{name} label")
        _band(right, at, [row["gap"] for row in found], COLOURS[2], f"gap, {LEVEL:.0%} interval")
        right.axhline(0, color="0.5", linewidth=0.8)
        left.set(title="Pairs of sequences", xlabel="layer (0: embeddings)", ylabel=SIMILARITY)
        right.set(title="Same label minus different label", xlabel="layer (0: embeddings)", ylabel="gap")
        for ax in (left, right):
            ax.legend()
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        _write(figure, path)


def pairs(alike: Tensor, distance: Tensor, found: dict[str, Estimate], path: Path) -> None:
    """Figure 2: one dot per pair of sequences, and the coefficients."""
    said = [
        f"{name.capitalize()} {fixed(e.value, 3)} [{fixed(e.low, 3)}, {fixed(e.high, 3)}]" for name, e in found.items()
    ]
    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(6, 4.3), layout="constrained")
        ax.plot(alike.numpy(), distance.numpy(), "o", color=COLOURS[0], alpha=0.5, markersize=4, markeredgewidth=0)
        ax.set(
            title=f"{len(alike)} pairs of sequences", xlabel=f"last layer: {SIMILARITY}", ylabel="|reward difference|"
        )
        texts = [Line2D([], [], linestyle="", label=text) for text in said]
        figure.legend(
            handles=texts,
            loc="outside lower center",
            ncols=3,
            fontsize=8,
            handlelength=0,
            handletextpad=0,
            columnspacing=1,
        )
        _write(figure, path)


def hacking_and_drift(table5: dict[str, Any] | None, steps: list[int], means: Tensor, path: Path) -> None:
    """Figure 9: similarity within and across hacking and normal responses; similarity of a text's states between training steps."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
        left.set(title="Responses of the trained policy", ylabel=SIMILARITY)
        if table5 is None:
            left.text(0.5, 0.5, "not measured", transform=left.transAxes, ha="center", color="0.5")
            left.set(xticks=[], yticks=[])
        else:
            for i, name in enumerate(("hacking", "normal", "across")):
                e: Estimate = table5[name]
                around = [[max(e.value - e.low, 0)], [max(e.high - e.value, 0)]]
                left.bar(i, e.value, color=COLOURS[i], width=0.6, yerr=around, ecolor="0.3", capsize=4)
            left.set_axisbelow(True)
            left.set_xticks(range(3), ["within\nhacking", "within\nnormal", "across"])
        picture = right.imshow(means.numpy(), cmap="viridis", origin="lower")
        right.set_xticks(range(len(steps)), [str(step) for step in steps], rotation=90)
        right.set_yticks(range(len(steps)), [str(step) for step in steps])
        right.set(title="One text at two training steps", xlabel="step", ylabel="step")
        right.grid(False)
        figure.colorbar(picture, ax=right, label=SIMILARITY)
        _write(figure, path)


def _band(ax: Axes, at: list[int], values: list[Estimate], colour: str, label: str) -> None:
    ax.plot(at, [e.value for e in values], color=colour, label=label)
    ax.fill_between(at, [e.low for e in values], [e.high for e in values], color=colour, alpha=0.18, linewidth=0)


def _write(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=160)
    plt.close(figure)
