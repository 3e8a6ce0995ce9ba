"""Figure 2: do sequences with similar hidden states have similar rewards?"""

import warnings
from typing import Any

import numpy
import torch
from scipy import stats
from torch import Tensor

from r2m_cli.analysis import figures
from r2m_cli.analysis.results import Results, estimate
from r2m_cli.analysis.sequences import CHOSEN, Selection
from r2m_cli.errors import UserError
from r2m_cli.maths.similarity import rowwise_similarity
from r2m_cli.maths.statistics import resample_weights
from r2m_cli.stages.accuracy import accuracy_of, unsure

COEFFICIENTS: dict[str, Any] = {
    "pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau,
}  # fmt: skip
PAPER = {"pearson": "-0.683", "spearman": "-0.711", "kendall": "-0.545"}


def figure2(states: Tensor, rewards: Tensor, selection: Selection, results: Results) -> None:
    """Correlation of similarity with |difference of the rewards|: for the last layer with intervals, for other layers without.

    Writes `pairs.csv`, one row per pair, and `figure2.png`. Intervals are over pairs if these are disjoint, else over prompts.

    Args:
        states: [n, layers + 1, D].
        rewards: [n], of the same sequences.
    """
    first, second = selection.first, selection.second
    distance = (rewards[first] - rewards[second]).abs().double()
    by_layer = [rowwise_similarity(states[first, layer], states[second, layer]) for layer in range(states.shape[1])]
    deep = by_layer[-1]
    drawn = bootstrap(deep, distance, _pair_weights(selection, results))
    plain = correlations(deep, distance)
    found = {
        name: estimate(torch.tensor(plain[name]), torch.tensor([row[name] for row in drawn])) for name in COEFFICIENTS
    }
    results.figures["figure2"] = {
        "pairs": len(first), "disjoint": selection.disjoint, "layer": states.shape[1] - 1, **found,
        "layers": [{"layer": i} | correlations(alike, distance) for i, alike in enumerate(by_layer)],
    }  # fmt: skip
    for name, value in found.items():
        results.line("2", f"{name}, {len(first)} pairs", value, PAPER[name])
    figures.pairs(deep, distance, found, results.folder / "figure2.png")
    columns = zip(first.tolist(), second.tolist(), deep.tolist(), distance.tolist())
    results.table(
        "pairs.csv", [{"first": a, "second": b, "similarity": s, "reward_difference": d} for a, b, s, d in columns]
    )


def accuracy(rewards: Tensor, selection: Selection, apart: list[int], results: Results) -> None:
    """Share of figure 1's pairs whose chosen reply has the higher reward (an equal one is wrong), with its interval.

    Args:
        apart: indices of the pairs that still differ after the cut to the reward model's limit; the others are ignored.
    """
    if not apart:
        return
    labels = [s.label for s in selection.sequences[: selection.compared : 2]]
    assert set(labels) == {CHOSEN}, "figure 1's sequences are chosen, rejected, chosen, ..."
    both = rewards[: selection.compared].view(-1, 2)[apart]
    units = selection.units[: selection.compared : 2][apart]
    right = accuracy_of(both[:, 0] - both[:, 1], units, results.resamples, results.seed)
    results.figures["reward_model"] = {"pairs": len(both), "accuracy": right}
    results.line("-", f"reward model right, {len(both)} pairs{unsure(right)}", right)


def correlations(alike: Tensor, distance: Tensor) -> dict[str, float]:
    """Every correlation coefficient of two lists of numbers, [M] each; NaN if one of them does not vary."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns that a list is constant; the NaN already shows it
        return {name: float(of(alike.numpy(), distance.numpy()).statistic) for name, of in COEFFICIENTS.items()}


def bootstrap(alike: Tensor, distance: Tensor, weights: Tensor) -> list[dict[str, float]]:
    """The coefficients of every resample; weights [resamples, M] are how often each pair occurs in it."""
    found = []
    for times in weights.long().numpy():
        index = torch.from_numpy(numpy.repeat(numpy.arange(len(times)), times))
        enough = len(index) >= 2
        found.append(correlations(alike[index], distance[index]) if enough else dict.fromkeys(COEFFICIENTS, torch.nan))
    return found


def _pair_weights(selection: Selection, results: Results) -> Tensor:
    """How often each pair occurs in each resample. [resamples, M]."""
    if selection.disjoint:
        return resample_weights(torch.arange(len(selection.first)), results.resamples, results.seed)
    times = resample_weights(selection.units, results.resamples, results.seed)
    return times[:, selection.first] * times[:, selection.second]


def require_finite(rewards: Tensor) -> None:
    """Raise UserError if a reward is not a finite number."""
    missing = int((~rewards.isfinite()).sum())
    if missing:
        raise UserError(
            f"reward.path: {missing} of {len(rewards)} rewards are NaN or infinite; try engine.dtype=fp32, or another model"
        )
