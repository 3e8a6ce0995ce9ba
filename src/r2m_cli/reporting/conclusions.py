"""The curves in words: for each label whether the reward model was gamed; how the settings differ; the runs' warnings."""

from dataclasses import dataclass
from typing import Literal

import pandas as pd  # type: ignore[import-untyped, unused-ignore]

from r2m_cli.files.regular import require_regular
from r2m_cli.files.run_folder import WARNINGS
from r2m_cli.reporting.groups import Group
from r2m_cli.reporting.run_names import IGNORED, flatten, plain
from r2m_cli.reporting.runs import finite
from r2m_cli.text import fixed

Kind = Literal["gamed", "fell", "held", "flat", "short", "unknown"]
HEADLINES: dict[Kind, str] = {
    "gamed": "Over-optimised",
    "fell": "Gold fell",
    "held": "Gold held",
    "flat": "No clear change",
    "short": "Too short to say",
    "unknown": "No gold",
}
POINTS = 5  # smallest number of points of a curve for a verdict
# In standard deviations of a point's noise. Gold's peak is the largest of many noisy points, so even a flat curve ends below
# its peak: by about two standard deviations among twenty points. Four count as a fall; points that are not picked need fewer.
FALL, CHANGE = 4.0, 3.0
SMALL = 0.05  # but at least this share of the curve's range


@dataclass(frozen=True)
class Conclusion:
    """What happened to gold in the runs of one name."""

    name: str
    kind: Kind
    text: str  # one or two sentences with the numbers
    peak: int | None = None  # step of gold's peak, of the mean over the runs; None: no gold
    lost: float | None = None  # gold's peak minus its end, if that is more than noise

    @property
    def headline(self) -> str:
        """The verdict in two or three words, and what was lost."""
        return HEADLINES[self.kind] + (f", -{fixed(self.lost)}" if self.lost is not None else "")


def conclusion(group: Group) -> Conclusion:
    """Judge the mean curves of a label's runs.

    Over-optimised: gold ends below its peak by more than its noise, while the proxy (the initial, frozen reward model) or the
    live reward rose after that step. The noise is the larger of two estimates: from the curve itself (`noise`), and from the
    number of evaluation prompts in a point's mean (`sampling_error`).
    """
    gold = group.mean("gold")
    if gold.empty:
        return Conclusion(group.name, "unknown", _without_gold(group))
    peak, end = int(gold.idxmax()), int(gold.index[-1])
    start, top, last = gold.iloc[0], gold.max(), gold.iloc[-1]
    course = f"gold went from {fixed(start)} to {fixed(last)} in {end} steps"
    if len(gold) < POINTS:
        text = f"{course}; {len(gold)} measurements are too few to distinguish a fall from noise."
        return Conclusion(group.name, "short", _sentence(text, group), peak)
    threshold = _threshold(gold, FALL, sampling_error(group))
    if top - last > threshold:
        kind, others = _beside_the_fall(group, peak)
        where = "before training" if peak == 0 else f"step {peak}"
        text = f"gold peaked at {fixed(top)} ({where}) and fell to {fixed(last)}{others}."
        return Conclusion(group.name, kind, _sentence(text, group, peak), peak, lost=float(top - last))
    most = "" if peak == end else f" (highest: {fixed(top)}, step {peak})"
    if last - start > threshold:
        text = f"{course}{most} and did not fall from its peak by more than its noise ({fixed(threshold)}): no over-optimisation."
        return Conclusion(group.name, "held", _sentence(text, group), peak)
    text = f"{course}{most}: no gain and no loss beyond its noise ({fixed(threshold)})."
    return Conclusion(group.name, "flat", _sentence(text, group), peak)


def noise(curve: pd.Series) -> float:
    """Standard deviation of the noise of a curve's points: a robust estimate from second differences, which are 0 for a straight
    line. 0 for a curve of fewer than three points."""
    bends = curve.diff().diff().dropna().abs()
    return 1.4826 * float(bends.median()) / 6**0.5 if len(bends) else 0.0


def sampling_error(group: Group) -> float:
    """Standard error of a point of the gold curve, which is a mean over eval.prompts responses in each run.

    The spread of single responses is that of the last logged samples. 0 if either number is not known.
    """
    errors = []
    for run in group.runs:
        rows = run.samples
        gold = pd.Series([finite(row.get("gold")) for row in rows[max(rows)]] if rows else [], dtype=float).dropna()
        settings = run.config.get("eval") if run.has("eval/gold") else None
        prompts = finite(settings.get("prompts")) if isinstance(settings, dict) else 0.0
        errors.append(gold.std() / prompts**0.5 if len(gold) > 1 and prompts >= 1 else 0.0)
    return float(sum(error**2 for error in errors) ** 0.5 / len(errors))


def _threshold(curve: pd.Series, times: float, least: float = 0.0) -> float:
    """How far a curve must move to count as changed; the noise of a point is at least `least`."""
    return max(times * max(noise(curve), least), SMALL * float(curve.max() - curve.min()))


def _beside_the_fall(group: Group, peak: int) -> tuple[Kind, str]:
    """How proxy and live reward changed since gold's peak."""
    words, rose = [], False
    learns = not _same(group.mean("reward"), group.mean("reward_frozen"))
    for name, word in (("reward_frozen", "the proxy"), ("reward", "the live reward")):
        curve = group.mean(name)
        if curve.empty or (name == "reward" and not learns):
            continue
        then, now = float(curve.iloc[(abs(curve.index - peak)).argmin()]), float(curve.iloc[-1])
        enough = _threshold(curve, CHANGE)
        rose |= now - then > enough
        moved = "rose" if now - then > enough else "fell" if then - now > enough else "went"
        words.append(f"{word} {moved} from {fixed(then)} to {fixed(now)}")
    said = " and ".join(words)
    if rose:
        return "gamed", f" while {said}"
    return "fell", f" while {said}: no reward rose, so this is not over-optimisation" if said else ""


def _same(one: pd.Series, other: pd.Series) -> bool:
    return len(one) == len(other) and bool((abs(one.to_numpy() - other.to_numpy()) < 1e-9).all())


def _sentence(text: str, group: Group, peak: int | None = None) -> str:
    """The text with a capital letter; for several runs, with the number of those whose gold ends below its peak."""
    text = text[0].upper() + text[1:]
    if len(group.runs) == 1:
        return text
    text += f" Means of {len(group.runs)} runs"
    if peak is not None:
        table = group.table("gold")
        lower = int((table.iloc[-1] < table.loc[peak]).sum())
        text += f"; in {'all' if lower == len(group.runs) else lower} of them gold ends lower than it was at that step"
    return text + "."


def _without_gold(group: Group) -> str:
    """The text if the truth is not known: live reward, proxy, and the gap between them."""
    live, frozen, kl = (group.mean(name) for name in ("reward", "reward_frozen", "kl"))
    text = "the true reward is not known here, and over-optimisation cannot be seen without it."
    if live.empty:
        return _sentence(text, group)
    text += f" The live reward went from {fixed(live.iloc[0])} to {fixed(live.iloc[-1])}"
    if frozen.empty:
        return _sentence(text + ".", group)
    if _same(live, frozen):
        text += "; the reward model does not learn, so it is the proxy itself"
    else:
        text += (
            f", the proxy from {fixed(frozen.iloc[0])} to {fixed(frozen.iloc[-1])}: the gap between them went from "
            f"{fixed(live.iloc[0] - frozen.iloc[0])} to {fixed(live.iloc[-1] - frozen.iloc[-1])}"
        )
    return _sentence(text + (f", at a KL of {fixed(kl.iloc[-1], 1)} nats." if len(kl) else "."), group)


def lede(conclusions: list[Conclusion]) -> str:
    """The conclusions in one sentence: which labels were over-optimised, the worst first, and which were not."""
    by_kind: dict[Kind, list[str]] = {}
    for one in sorted(conclusions, key=lambda one: -(one.lost or 0.0)):
        lost = f" (-{fixed(one.lost)})" if one.lost is not None and len(conclusions) > 1 else ""
        by_kind.setdefault(one.kind, []).append(one.name + lost)
    phrases: dict[Kind, str] = {
        "gamed": "the reward model was gamed in {}: gold fell while the reward rose",
        "fell": "in {} gold fell although no reward rose",
        "held": "{} kept what gold gained",
        "flat": "in {} gold did not change beyond its noise",
        "short": "{} ended too early to say",
        "unknown": "in {} the true reward is not known, and over-optimisation cannot be seen without it",
    }
    parts = [text.format(_listed(by_kind[kind], len(conclusions))) for kind, text in phrases.items() if kind in by_kind]
    said = "; ".join(parts)
    return f"{said[0].upper()}{said[1:]}." if said else ""


def _listed(names: list[str], total: int) -> str:
    """The names as part of a sentence; if there are more than three, only their number and the worst one."""
    if len(names) > 3:
        worst = f", most in {names[0]}" if names[0].endswith(")") else ""
        return f"{len(names)} of {total} settings{worst}"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def differences(groups: list[Group]) -> list[tuple[str, list[str]]]:
    """(key, its value in every group) of each configuration key in which groups differ, except seeds and paths of files.

    If the runs of a group differ, its cell has all their values, separated by slashes; "-": the key does not exist there.
    """
    cells = [[{k: plain(v) for k, v in flatten(run.config)} for run in group.runs] for group in groups]
    keys = dict.fromkeys(key for group in cells for run in group for key in run if not IGNORED.match(key))
    rows = [(key, [" / ".join(dict.fromkeys(run.get(key, "-") for run in group)) for group in cells]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


@dataclass(frozen=True)
class Said:
    """One line of the runs' warnings.log, and the runs that logged it."""

    text: str
    by: list[tuple[int, str]]  # group's index, "label" or "label (2 of 3 runs)"


def warnings(groups: list[Group]) -> list[Said]:
    """Every distinct line of warnings.log (warnings and notes), in the order in which the runs logged them."""
    found: dict[str, dict[int, int]] = {}
    for place, group in enumerate(groups):
        for run in group.runs:
            file = run.path / WARNINGS
            require_regular(file)
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
            for line in dict.fromkeys(filter(None, map(str.strip, lines))):
                counts = found.setdefault(line, {})
                counts[place] = counts.get(place, 0) + 1
    return [Said(text, [(place, _whose(groups[place], n)) for place, n in who.items()]) for text, who in found.items()]


def _whose(group: Group, count: int) -> str:
    total = len(group.runs)
    return group.name if count == total else f"{group.name} ({count} of {total} runs)"
