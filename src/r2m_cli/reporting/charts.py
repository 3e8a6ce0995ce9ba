"""The page's charts as plotly figures, without colours: page.js adds them for the light, dark and print themes.

A trace's `meta` describes it: `series` (index of the label), `part` (line, band, lost, peak, end, bar), and for bars `stage`
(index of the stage).
"""

import html
import textwrap
from dataclasses import dataclass, field
from typing import Any

import pandas as pd  # type: ignore[import-untyped, unused-ignore]

from r2m_cli.monitor.catalogue import CATALOGUE
from r2m_cli.reporting.conclusions import Conclusion
from r2m_cli.reporting.groups import COLOURS, Group

DASHES = ("solid", "dash", "dot", "dashdot")
STAGES = [name.removeprefix("time/") for name in CATALOGUE if name.startswith("time/")]
OTHER = "other"  # the time of a step outside its stages
DIGITS = 5  # decimals of the numbers in the page

Trace = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """One chart: its texts on the page, and plotly's traces and layout."""

    key: str
    title: str
    note: str
    traces: list[Trace]
    layout: dict[str, Any] = field(default_factory=dict)
    stages: list[str] = field(default_factory=list)  # of the bars, for the key below them


def charts(groups: list[Group], conclusions: list[Conclusion], truth: str) -> list[Chart]:
    """All charts with measurements: the truth first, then the rewards that the policy was trained on, then the rest.

    Args:
        conclusions: one per group.
        truth: "gold", or "reward" if no run knows the truth.
    """
    titles = {
        "gold": ("Gold: the true reward", "gold"),
        "reward_frozen": ("Proxy: the initial, frozen reward model", "score"),
        "reward": ("Live reward: what the policy is trained on", "score"),
        "kl": ("KL to the reference", "nats per response"),
        "length": ("Response length", "tokens"),
    }
    steps = {key: _against_steps(key, *texts, groups, conclusions) for key, texts in titles.items()}
    against_kl = _against_kl(groups, conclusions, truth)
    if truth == "gold":
        first = [steps["gold"], steps["reward_frozen"], against_kl, steps["reward"]]
    else:
        first = [steps["reward"], _gap(groups), steps["reward_frozen"], against_kl]
    found = [*first, steps["kl"], steps["length"], _time(groups)]
    return [chart for chart in found if chart.traces]


def _against_steps(key: str, title: str, unit: str, groups: list[Group], conclusions: list[Conclusion]) -> Chart:
    traces: list[Trace] = []
    for place, (group, conclusion) in enumerate(zip(groups, conclusions)):
        mean = group.mean(key)
        if mean.empty:
            continue
        if key == "gold" and conclusion.lost is not None:
            traces.append(_lost(place, mean))
        spread = group.spread(key)
        if not spread.empty:
            traces.append(_area(place, "band", mean - spread, mean + spread))
        traces += _curve(place, group.name, mean, spread, unit)
        if conclusion.peak is not None and conclusion.peak in mean.index:
            traces.append(_mark(place, "peak", conclusion.peak, mean[conclusion.peak]))
    layout = {"xaxis": _axis("step"), "yaxis": _axis(unit), "hovermode": "x unified"}
    return Chart(key, title, _source(key, groups), traces, layout)


def _curve(place: int, label: str, mean: pd.Series, spread: pd.Series, unit: str) -> list[Trace]:
    """The line of a label, with hover texts and a dot at its end."""
    sd = "" if spread.empty else " ± %{customdata:.2f}"
    line: Trace = {
        "type": "scatter",
        "mode": "lines",
        "name": html.escape(label),  # plotly interprets some HTML in its texts
        "x": [int(step) for step in mean.index],
        "y": _numbers(mean),
        "line": {"width": 2.2, "dash": dashes(place)},
        "hovertemplate": f"%{{y:.2f}}{sd}",
        "meta": {"series": place, "part": "line"},
    }
    if sd:
        line["customdata"] = _numbers(spread)
    return [line, _mark(place, "end", mean.index[-1], mean.iloc[-1])]


def _area(place: int, part: str, lower: pd.Series, upper: pd.Series) -> Trace:
    """The area between two curves over the same steps."""
    x = [int(step) for step in lower.index]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x + x[::-1],
        "y": _numbers(upper) + _numbers(lower)[::-1],
        "fill": "toself",
        "line": {"width": 0},
        "hoverinfo": "skip",
        "meta": {"series": place, "part": part},
    }


def _lost(place: int, gold: pd.Series) -> Trace:
    """The cost of over-optimisation: from gold's peak on, the area between the peak's level and gold."""
    after = gold[gold.index >= gold.idxmax()]
    return _area(place, "lost", after, after * 0 + gold.max())


def _mark(place: int, part: str, x: float, y: float) -> Trace:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [float(x)],
        "y": _numbers([y]),
        "marker": {"symbol": "star", "size": 14} if part == "peak" else {"symbol": "circle", "size": 7},
        "hoverinfo": "skip",
        "meta": {"series": place, "part": part},
    }


def _against_kl(groups: list[Group], conclusions: list[Conclusion], truth: str) -> Chart:
    traces: list[Trace] = []
    for place, (group, conclusion) in enumerate(zip(groups, conclusions)):
        curves = {"kl": group.mean("kl"), "truth": group.mean(truth)}
        if any(curve.empty for curve in curves.values()):
            continue
        both = pd.concat(curves, axis="columns", join="inner")
        if both.empty:
            continue
        line = _curve(place, group.name, both["truth"], pd.Series(dtype=float), "")[0]
        line |= {
            "x": _numbers(both["kl"]),
            "customdata": [int(step) for step in both.index],
            "hovertemplate": f"step %{{customdata}}<br>KL %{{x:.2f}}<br>{truth} %{{y:.2f}}",
        }
        traces += [line, _mark(place, "end", both["kl"].iloc[-1], both["truth"].iloc[-1])]
        if truth == "gold" and conclusion.peak in both.index:
            traces.append(_mark(place, "peak", *both.loc[conclusion.peak]))
    name = "Gold" if truth == "gold" else "Live reward"
    layout = {"xaxis": _axis("KL to the reference, nats per response"), "yaxis": _axis(truth), "hovermode": "closest"}
    return Chart(f"{truth}_kl", f"{name} against KL", "gain per nat of drift; time runs along the line", traces, layout)


def _gap(groups: list[Group]) -> Chart:
    """Live reward minus proxy: the only sign of over-optimisation if the truth is not known."""
    traces: list[Trace] = []
    for place, group in enumerate(groups):
        gap = (group.mean("reward") - group.mean("reward_frozen")).dropna()
        if len(gap) and gap.abs().max() > 1e-9:  # 0 if the reward model does not learn
            traces += _curve(place, group.name, gap, pd.Series(dtype=float), "score")
    layout = {"xaxis": _axis("step"), "yaxis": _axis("score"), "hovermode": "x unified"}
    return Chart("gap", "Live reward minus proxy", "how far the reward model has moved from its start", traces, layout)


def _time(groups: list[Group]) -> Chart:
    """One bar per label: mean seconds per step of each stage, over all steps and runs."""
    seconds = [_seconds(group) for group in groups]
    stages = [stage for stage in (*STAGES, OTHER) if any(stage in bar for bar in seconds)]
    traces: list[Trace] = [
        {
            "type": "bar",
            "orientation": "h",
            "name": stage.replace("_", " "),
            "y": [wrapped(group.name)],
            "x": _numbers([bar[stage]]),
            "customdata": _numbers([100 * bar[stage] / sum(bar.values())]),
            "hovertemplate": "%{x:.3~r} s a step, %{customdata:.0f} %",
            "meta": {"series": place, "part": "bar", "stage": number},
        }
        for place, (group, bar) in enumerate(zip(groups, seconds))
        for number, stage in enumerate(stages)
        if stage in bar
    ]
    layout = {
        "barmode": "stack",
        "bargap": 0.35,
        "xaxis": _axis("seconds a step"),
        "yaxis": {"automargin": True, "autorange": "reversed"},
        "hovermode": "closest",
    }
    note = "mean over all steps, including those without evaluation"
    return Chart("time", "Time per stage", note, traces, layout, [stage.replace("_", " ") for stage in stages])


def _seconds(group: Group) -> dict[str, float]:
    """Mean seconds per step of every timed stage, and of the rest of the step."""
    timed = [run.metrics[run.metrics.index > 0] for run in group.runs if run.has("step_time")]
    if not timed:
        return {}
    rows = pd.concat(timed)
    means = {stage: rows[f"time/{stage}"].sum() / len(rows) for stage in STAGES if f"time/{stage}" in rows}
    rest = float(rows["step_time"].mean()) - sum(means.values())
    # Each stage's time is that of its slowest rank, so the sum may exceed the step's own time.
    return {stage: float(mean) for stage, mean in means.items() if mean > 0} | ({OTHER: rest} if rest > 0 else {})


def dashes(place: int) -> str:
    """The line style: the next one each time all colours have been used."""
    return DASHES[place // len(COLOURS) % len(DASHES)]


def wrapped(label: str, width: int = 18) -> str:
    """The label broken into several lines, for an axis."""
    return "<br>".join(html.escape(line) for line in textwrap.wrap(label, width)) or html.escape(label)


def _source(key: str, groups: list[Group]) -> str:
    """What a curve was measured on, as a subtitle."""
    measured = any(run.has(f"eval/{key}") for group in groups for run in group.runs)
    return "on the fixed evaluation prompts" if measured else "on the rollouts, mean over 5 % of the steps"


def _axis(title: str) -> dict[str, Any]:
    return {"title": {"text": title}}


def _numbers(values: Any) -> list[float | None]:
    """Rounded Python numbers; None (a gap) for values that are not finite."""
    rounded = [round(float(value), DIGITS) for value in values]
    return [value if abs(value) < float("inf") else None for value in rounded]
